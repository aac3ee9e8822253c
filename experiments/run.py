"""`python -m experiments.run --config NAME [--key value ...]`: a frozen RWKV-7 without and with a tuned state.

The same as `rwkv7 tune`: it parses the settings (`experiments.commands.tune`), runs them (`experiments.session`) and
reports (`experiments.artifacts`). `--config paper_table` runs all methods on all benchmarks with several seeds instead,
cell by cell.

Exit status: 0 PASS, 1 FAIL, 2 wrong usage or files (one line), 130 interrupted (the same command resumes).
"""

import sys

from experiments.commands.tune import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
