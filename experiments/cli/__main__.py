"""`python -m experiments.cli`: the same as `rwkv7`."""

import sys

from experiments.cli import main

if __name__ == "__main__":
    sys.exit(main())
