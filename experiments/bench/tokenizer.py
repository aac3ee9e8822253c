"""Our World tokenizer against the authors' own, on text files (`rwkv7 bench tokenizer FILE...`).

A file that ends in .jsonl is taken line by line (the `text` of each), any other as one text of at most 200 000 bytes.
Both encode in turn, the best of five counts; no time is printed for unequal tokens. Needs PyPI `rwkv`, no torch.
"""

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from experiments.config.overrides import UsageError
from experiments.data.jsonl import read_lines
from experiments.reporting.tables import markdown_line, markdown_table
from rwkv7_jax.tokenizer import world

LONGEST = 200_000
ROUNDS = 5
Encode = Callable[[bytes], list[int]]


def encoders() -> dict[str, Encode]:
    """Returns who -> bytes to ids.

    Raises:
      FileNotFoundError: the package `rwkv` is not installed.
    """
    vocabulary = world.find_vocabulary()
    spec = importlib.util.spec_from_file_location("authors_tokenizer", vocabulary.with_name("rwkv_tokenizer.py"))
    assert spec is not None
    assert spec.loader is not None
    authors = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(authors)
    return {
        "ours": world.load_tables(vocabulary).encode,
        "theirs": authors.TRIE_TOKENIZER(str(vocabulary)).encodeBytes,
    }


def texts(path: Path) -> list[bytes]:
    """Returns the texts of a file, empty ones too.

    Raises:
      UsageError: a line without text; with file and line.
    """
    if path.suffix != ".jsonl":
        return [path.read_bytes()[:LONGEST]]
    lines = read_lines(path)
    if wrong := [line.where for line in lines if not isinstance(line.record.get("text"), str)]:
        raise UsageError(f"{wrong[0]}: no string `text`")
    return [line.record["text"].encode() for line in lines]


def race(texts: Sequence[bytes], runners: dict[str, Encode]) -> dict[str, float]:
    """Returns who -> least seconds for all texts.

    Raises:
      ValueError: they do not agree.
    """
    for text in texts:
        if len({tuple(encode(text)) for encode in runners.values()}) > 1:
            raise ValueError(f"the tokenizers do not agree on {text[:60]!r}")
    best = dict.fromkeys(runners, float("inf"))
    for _ in range(ROUNDS):
        for who, encode in runners.items():
            begin = time.perf_counter()
            for text in texts:
                encode(text)
            best[who] = min(best[who], time.perf_counter() - begin)
    return best


def table(files: Sequence[Path]) -> Iterator[str]:
    """Yields the lines of a Markdown table, each as soon as its file is measured.

    Raises:
      FileNotFoundError: no such file, or the package `rwkv` is not installed.
      UsageError: a line without text.
      ValueError: the tokenizers do not agree.
    """
    runners = encoders()
    yield markdown_table([["text", "bytes", "ours, MB/s", "theirs, MB/s", "ours is faster by"]])
    for path in files:
        found = texts(path)
        best, size = race(found, runners), sum(map(len, found))
        rates = [f"{size / best[who] / 1e6:.2f}" for who in ("ours", "theirs")]
        yield markdown_line([path.name, size, *rates, f"{best['theirs'] / best['ours']:.2f}x"])
