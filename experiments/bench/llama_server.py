"""llama.cpp's own server, of the wheel `xllamacpp`, as a process that ends with its standard input.

`python -m experiments.bench.llama_server FILE SLOTS` prints its address once it answers.
"""

import os
import sys
from pathlib import Path

CONTEXT = 4096
"""Places of each sequence."""


def serve(file: Path, slots: int) -> None:
    """Serves a GGUF file with so many sequences side by side, and with every processor that this process may use."""
    import xllamacpp  # pyright: ignore[reportMissingImports]

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_parallel, params.n_ctx = slots, slots * CONTEXT
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.port, params.verbosity, params.cache_ram_mib = 0, 1, 0
    server = xllamacpp.Server(params)
    print(f"serving {file.stem} at {server.listening_address} ", flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
