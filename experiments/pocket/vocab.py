"""The pocket tokenizer: the world's words as whole tokens, digits one by one, single bytes for everything else."""

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING

from experiments.pocket.benchmarks import BUILDERS, SIZES, load
from experiments.pocket.text import documents
from experiments.tasks import TASKS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
VOCAB_SIZE = 1024
SAMPLE_DOCUMENTS = 50_000
PIECES = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s"


def text_sample() -> list[str]:
    """The pre-training documents whose words the vocabulary covers."""
    return list(islice(documents(0), SAMPLE_DOCUMENTS))


def benchmark_texts() -> list[str]:
    """Every benchmark's prompts and completions."""
    records = ((name, record) for name in BUILDERS for split in SIZES for record in load(name, split))
    return ["".join(TASKS[name].to_example(record)) for name, record in records]


def _pre_tokenizer():
    from tokenizers import Regex, pre_tokenizers

    pieces = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    return pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def build_tokenizer(size: int = VOCAB_SIZE) -> "Tokenizer":
    """A tokenizer of `size` tokens: 0 ends a text, then 256 bytes, words, and spare ones to fill up.

    Words are ranked by how often the text has them; those that only benchmarks have come last, so that another
    benchmark renumbers none of the text's. A piece outside the vocabulary is spelt in bytes, so every text comes back
    exactly. The same on every run.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    splitter = _pre_tokenizer()

    def ranked(texts: list[str]) -> list[str]:
        counts = Counter(piece for text in texts for piece, _ in splitter.pre_tokenize_str(text))
        return sorted((piece for piece in counts if len(piece) > 1), key=lambda piece: (-counts[piece], piece))

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = dict.fromkeys([*ranked(text_sample()), *ranked(benchmark_texts())])
    tokens = [END_OF_TEXT, *letters, *words][:size]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    spare = [f"<|spare_{i}|>" for i in range(size - len(tokens))]
    tokenizer.add_special_tokens([END_OF_TEXT, *spare])
    return tokenizer
