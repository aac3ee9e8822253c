"""`python -m experiments.bench.tokenizer FILE...`: our World tokenizer against the authors' own, on text files.

A file that ends in .jsonl is taken line by line (the `text` of each), any other as one text of at most 200 000 bytes.
Both encode in turn, the best of five counts; no time is printed for unequal tokens. Needs PyPI `rwkv`, no torch.
"""

import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.config.cli import documented
from experiments.config.overrides import UsageError
from experiments.data.jsonl import read_lines

LONGEST = 200_000
ROUNDS = 5
Encode = Callable[[bytes], list[int]]


def encoders() -> dict[str, Encode]:
    """who -> bytes to ids. Raises: FileNotFoundError without the package `rwkv`."""
    from rwkv7_jax.tokenizer import world

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
    """The texts of a file, empty ones too. Raises: UsageError with file and line."""
    if path.suffix != ".jsonl":
        return [path.read_bytes()[:LONGEST]]
    lines = read_lines(path)
    if wrong := [line.where for line in lines if not isinstance(line.record.get("text"), str)]:
        raise UsageError(f"{wrong[0]}: no string `text`")
    return [line.record["text"].encode() for line in lines]


def race(rows: Sequence[bytes], runners: dict[str, Encode]) -> dict[str, float]:
    """who -> least seconds for all rows. Raises: ValueError if they do not agree."""
    for row in rows:
        if len({tuple(encode(row)) for encode in runners.values()}) > 1:
            raise ValueError(f"the tokenizers do not agree on {row[:60]!r}")
    best = dict.fromkeys(runners, float("inf"))
    for _ in range(ROUNDS):
        for who, encode in runners.items():
            begin = time.perf_counter()
            for row in rows:
                encode(row)
            best[who] = min(best[who], time.perf_counter() - begin)
    return best


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0, 2 after a one-line error, 130 after Ctrl-C."""

    def run(args: list[str]) -> int:
        runners = encoders()
        print("| text | bytes | ours, MB/s | theirs, MB/s | ours is faster by |\n|---|---|---|---|---|")
        for path in map(Path, args):
            rows = texts(path)
            best, size = race(rows, runners), sum(map(len, rows))
            rates = [f"{size / best[who] / 1e6:.2f}" for who in ("ours", "theirs")]
            cells = [path.name, size, *rates, f"{best['theirs'] / best['ours']:.2f}x"]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
        return 0

    return documented(argv, lambda: str(__doc__), run, "interrupted")


if __name__ == "__main__":
    sys.exit(main())
