"""`python -m rwkv7_jax`: the same as the command `rwkv7`."""

import importlib
import sys
from pathlib import Path

if __name__ == "__main__":
    # The command belongs to `experiments`, which builds on this package and lies beside it.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    sys.exit(importlib.import_module("experiments.cli").main())
