"""Reads damaged files.

python -m tests.malformed [COUNT] [--reader NAME] [--seed N] [--processes N] [--minutes N]
    [--bad] [--show INDEX]
"""

import os

os.environ.update(
    JAX_PLATFORMS="cpu",
    OPENBLAS_NUM_THREADS="1",
    OMP_NUM_THREADS="1",
    RAYON_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.update(MALLOC_ARENA_MAX="2", NO_COLOR="1", ARROW_DEFAULT_MEMORY_POOL="system")

import argparse
import collections
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.malformed import bad_readers, readers, sandbox

CHUNK = 2500
"""Files a worker."""


def main() -> int:
    """Prints a line a reader, and each kind of fault once; returns 1 if there are any."""
    parser = argparse.ArgumentParser(prog="python -m tests.malformed", description="Reads damaged files.")
    parser.add_argument("count", type=int, nargs="?", default=100, help="files a reader")
    parser.add_argument("--reader", default="", help="only readers whose name holds this")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("RWKV7_TEST_SEED", "0")))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no more files after this time")
    parser.add_argument("--bad", action="store_true", help="the readers with faults that the sandbox has to see")
    parser.add_argument("--show", type=int, help="write damaged file number SHOW to stdout, and read nothing")
    args = parser.parse_args()
    known = list(bad_readers.readers()) if args.bad else readers.every()
    chosen = [reader for reader in known if args.reader in reader.name]
    if args.show is not None:
        ((_, data),) = sandbox.make(sandbox.Share(chosen[0], args.seed, 0, 0), args.show)[0].items()
        sys.stdout.buffer.write(data)
        return 0
    starts = range(0, args.count, CHUNK)
    shares = [sandbox.Share(reader, args.seed, at, min(args.count, at + CHUNK)) for at in starts for reader in chosen]
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(
        dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None, prefix="malformed-"
    ) as scratch:
        found = sandbox.run(shares, Path(scratch), args.processes, 60 * args.minutes)
        faults = Path(scratch, "faults.jsonl")
        rows = [json.loads(line) for line in faults.read_text().splitlines()] if faults.exists() else []
    for name, parts in found.items():
        files, refused, same, seconds, *_ = (sum(column) for column in zip(*parts, strict=True))
        wrong = sum(row["reader"] == name for row in rows)
        slowest, memory = max(part.slowest for part in parts), max(part.memory for part in parts) / 2**20
        counts = f"{files:7} files {refused:7} refused {same:6} the same {wrong:5} wrong"
        print(f"{name:26} {counts} {seconds:7.1f} s, one file at most {slowest:.2f} s, {memory:4.0f} MB")
    kinds = collections.defaultdict(list)
    for row in rows:
        kinds[row["reader"], row["wrong"][:60], row["wrong"].rsplit(" ", 3)[-3:][0]].append(row)
    for (name, *_), same in kinds.items():
        row = same[0]
        print(f"{len(same):5} x {name}, file {row['index']} ({row['done']}) of seed {args.seed}: {row['wrong']}")
    files = sum(part.files for parts in found.values() for part in parts)
    seconds = os.times().children_user + os.times().children_system
    print(f"{files} files, {len(rows)} wrong, {seconds:.0f} s of CPU, {time.monotonic() - begin:.0f} s")
    return int(bool(rows))


if __name__ == "__main__":
    sys.exit(main())
