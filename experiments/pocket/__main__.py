"""Command line of the pocket world: text, benchmark records and the tokenizer, as files.

python -m experiments.pocket text --n 5 --seed 1
python -m experiments.pocket benchmark --name gsm8k --split test --out x.jsonl
python -m experiments.pocket tokenizer --out experiments/assets/pocket/tokenizer.json
"""

import json
import sys
from itertools import islice
from pathlib import Path

import tyro

from experiments.pocket import benchmarks
from experiments.pocket.text import documents
from experiments.pocket.vocab import VOCAB_SIZE, build_tokenizer


def _write(lines: list[str], out: Path | None) -> None:
    content = "".join(f"{line}\n" for line in lines)
    if out is None:
        sys.stdout.write(content)
    else:
        out.write_text(content, encoding="utf-8")


def text(n: int = 5, seed: int = 0, out: Path | None = None) -> None:
    """Pre-training documents, one a line.

    Args:
        n: how many documents.
        seed: seed of the stream.
        out: file to write; stdout if absent.
    """
    _write(list(islice(documents(seed), n)), out)


def benchmark(name: str, split: str = "test", seed: int = 0, out: Path | None = None) -> None:
    """Records of one pocket benchmark as JSON lines.

    Args:
        name: mmlu, gsm8k, winogrande or arc.
        split: train, validation or test.
        seed: seed of the items.
        out: file to write; stdout if absent.
    """
    _write([json.dumps(record) for record in benchmarks.load(name, split, seed)], out)


def tokenizer(out: Path, size: int | None = None) -> None:
    """The pocket tokenizer as a tokenizer.json.

    Args:
        out: file to write.
        size: number of tokens; 1024 if absent.
    """
    out.write_text(build_tokenizer(size or VOCAB_SIZE).to_str(pretty=True) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    try:
        tyro.extras.subcommand_cli_from_dict({"text": text, "benchmark": benchmark, "tokenizer": tokenizer})
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
