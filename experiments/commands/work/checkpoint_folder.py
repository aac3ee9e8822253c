"""A folder for the Hugging Face hub: weights, settings, tokenizer and card."""

import pathlib

import numpy as np

from experiments.reporting.json_text import json_text
from rwkv7_jax.checkpoint import CheckpointError, ImportReport, hub_folder
from rwkv7_jax.checkpoint.files import one_line
from rwkv7_jax.language_model import find_tokenizer
from rwkv7_jax.tokenizer import ByteTokenizer, Tokenizer, WorldTokenizer, load_tokenizer
from rwkv7_jax.tokenizer.abilities import special_tokens

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- rwkv
- rwkv7
---

# {name}

RWKV-7 with {parameters:,} parameters: {layers} layers x {width}, {heads} heads of 64, vocabulary {vocabulary}, {dtype}.

| | |
|---|---|
| made from | `{source}` ({format}) |
| hash of the weights | `{weights_hash}` |
| tokenizer | {tokenizer} |

State files name the model that they belong to by the hash.

With flash-linear-attention (`pip install flash-linear-attention`):

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
```

With rwkv7-jax:

```
rwkv7 chat --model.checkpoint {name}
rwkv7 tune --config jsonl --model.checkpoint {name} --data.train my.jsonl
```
"""


def is_folder(target: str) -> bool:
    """Whether a target of `rwkv7 convert` is a folder: a slash ends it, it is there as one, or it has no suffix."""
    path = pathlib.Path(target)
    return target.endswith(("/", "\\")) or path.is_dir() or not path.suffix


def write(target: str, source: pathlib.Path, flat: dict[str, np.ndarray], report: ImportReport, digest: str) -> None:
    """Writes the folder.

    Args:
      target: its path.
      source: the checkpoint's path, beside which its tokenizer may lie.
      flat: the weights by released name, as they are to be written.
      report: what is known of the checkpoint.
      digest: hash of the weights as they are to be written.

    Raises:
      ValueError, OSError: in one line; nothing is left behind then.
    """
    dtypes = sorted({str(array.dtype) for array in flat.values()})
    if len(dtypes) > 1:
        raise CheckpointError(f"{target}: weights of {' and '.join(dtypes)}; --dtype makes them one")
    files, eos_id, tokenizer = _tokenizer(source, report.config.vocab_size)
    path, config = pathlib.Path(target), report.config
    card = CARD.format(
        name=one_line(path.name, 100),
        parameters=report.parameter_count,
        layers=config.n_layer,
        width=config.n_embd,
        heads=config.n_head,
        vocabulary=config.vocab_size,
        dtype=dtypes[0],
        source=one_line(source.name, 200),
        format=report.format,
        weights_hash=digest,
        tokenizer=tokenizer,
    )
    hub_folder.write(path, flat, config, weights_hash=digest, eos_id=eos_id, card=card, files=files)


def _tokenizer(source: pathlib.Path, vocab_size: int) -> tuple[dict[str, pathlib.Path | str], int, str]:
    """(files of the tokenizer, its end token, what it is in a few words)."""
    name = find_tokenizer("auto", source)
    try:
        tokenizer = load_tokenizer(name, vocab_size, source)
    except (ValueError, FileNotFoundError):
        return {}, 0, "not in this folder: none lay beside the checkpoint"
    if isinstance(tokenizer, WorldTokenizer):
        return {}, tokenizer.eos_id, "RWKV World, `rwkv_vocab_v20230424.txt` of the package `rwkv`"
    if isinstance(tokenizer, ByteTokenizer):
        return {}, tokenizer.eos_id, "bytes"
    path = pathlib.Path(name)
    beside = path.with_name("tokenizer_config.json")
    settings = beside if beside.is_file() else json_text(_settings(tokenizer), indent=2) + "\n"
    return {"tokenizer.json": path, "tokenizer_config.json": settings}, tokenizer.eos_id, "`tokenizer.json`"


def _settings(tokenizer: Tokenizer) -> dict[str, object]:
    """tokenizer_config.json of a tokenizer that has none."""
    named = special_tokens(tokenizer)
    end = {"eos_token": named[tokenizer.eos_id]} if tokenizer.eos_id in named else {}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **end}
