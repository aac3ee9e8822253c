"""`python -m experiments.bench`: speed and memory of the whole model against its peers, as ratios, on this machine.

Every measurement is a process of its own (so that peak memory is its own), all stay alive, and they are timed in
turn, round after round, a few calls at a time; the best call counts. Peers (`pip install -e ".[peers]"`): PyPI `rwkv`
(torch, CPU) on the same random checkpoint, and keras-hub's RWKV7 on JAX with random weights of the same shape. Correct
first: no time is printed for logits that differ.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiments.bench.inputs import DECODE, PREFILL, SHAPES, TUNE, make_checkpoint
from experiments.bench.worker import Job, Worker, work

TOLERANCE = 1e-3
JOBS = (
    Job("ours", "prefill", PREFILL),
    Job("rwkv", "prefill", PREFILL),
    Job("ours", "prefill, all logits", PREFILL),
    Job("keras-hub", "prefill, all logits", PREFILL),
    Job("ours", "decode", DECODE),
    Job("rwkv", "decode", DECODE),
    Job("ours", "state-tuning step", TUNE),
    Job("WKV as autodiffed scan", "state-tuning step", TUNE),
    Job("token-by-token scan", "state-tuning step", TUNE),
)


def start(jobs: tuple[Job, ...], checkpoint: Path, shape: str) -> tuple[dict[Job, Worker], dict[Job, str]]:
    """Running workers, and why the others do not run."""
    workers, missing = {}, {}
    for job in jobs:
        print(f"starting {job.who}: {job.task}", file=sys.stderr, flush=True)
        try:
            workers[job] = Worker(job, checkpoint, shape)
        except RuntimeError as error:
            missing[job] = str(error)
    return workers, missing


def disagreement(workers: dict[Job, Worker]) -> dict[Job, str]:
    """Jobs whose result is not the one that it is compared with: PyPI rwkv's logits, or our own loss."""
    wrong = {}
    for job, worker in workers.items():
        tuning = job.task == "state-tuning step"
        peers = (
            w for j, w in workers.items() if (j.who == "ours" and j.task == job.task if tuning else j.who == "rwkv")
        )
        wanted = next((peer.result for peer in peers if peer.result), None)
        if not worker.result or not wanted:
            continue
        scale = max(abs(x) for x in wanted)
        error = max(abs(x - y) for x, y in zip(worker.result, wanted, strict=True)) / scale
        if not error <= TOLERANCE:
            wrong[job] = f"wrong: differs by {error:.1e}"
    return wrong


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| task | who | tokens/s | ours is faster by | peak memory |", "|---|---|---|---|---|"]
    for row in rows:
        if "problem" in row:
            lines.append(f"| {row['task']} | {row['who']} | not measured: {row['problem']} | | |")
            continue
        ratio = "" if row["who"] == "ours" else f"{row['ratio']:.2f}x"
        lines.append(
            f"| {row['task']} | {row['who']} | {row['tokens_per_s']:.0f} | {ratio} | {row['peak'] / 2**30:.2f} GiB |"
        )
    return "\n".join(lines)


def compare(shape: str, rounds: int, without: list[str]) -> dict[str, Any]:
    """All measurements as one JSON value, but for those of whom `without` names."""
    jobs = tuple(job for job in JOBS if job.who not in without)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "random.pth"
        make_checkpoint(checkpoint, shape)
        size = checkpoint.stat().st_size
        importer = Worker(Job("ours", "import", 0), checkpoint, shape)
        importer.measure()
        importer.close()
        workers, missing = start(jobs, checkpoint, shape)
        missing |= disagreement(workers)
        for index in range(rounds):
            print(f"round {index + 1} of {rounds}", file=sys.stderr, flush=True)
            for job, worker in workers.items():
                if job not in missing:
                    worker.measure()
        for worker in workers.values():
            worker.close()
    best = {job.task: workers[job].seconds for job in workers if job.who == "ours"}
    rows = []
    for job in jobs:
        row: dict[str, Any] = {"task": job.task, "who": job.who}
        if job in missing:
            rows.append(row | {"problem": missing[job]})
            continue
        seconds = workers[job].seconds
        row |= {"tokens_per_s": job.tokens / seconds, "ratio": seconds / best[job.task], "peak": workers[job].peak}
        rows.append(row)
    return {
        "shape": shape, "rounds": rounds, "rows": rows,
        "import": {"seconds": importer.seconds, "peak": importer.peak, "file": size},
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="0.1B")
    parser.add_argument(
        "--rounds", type=int, default=5, help="times that everybody is measured in turn; the best counts"
    )
    names = ", ".join(sorted({job.who for job in JOBS} - {"ours"}))
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help=f"leave out one of: {names}")
    parser.add_argument("--json", type=Path, help="write all numbers to this file too")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        who, task = args.worker
        work(who, task, args.checkpoint, args.shape)
        return 0
    result = compare(args.shape, args.rounds, args.without)
    print(table(result["rows"]))
    found = result["import"]
    print(f"\nimport of the .pth: {found['seconds']:.1f} s, peak memory {found['peak'] / found['file']:.2f} x the file "
          f"({found['file'] / 2**20:.0f} MiB), the interpreter and JAX included")  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
