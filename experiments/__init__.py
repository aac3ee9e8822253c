"""Everything that reads configs, files, data and clocks: commands, runs, evaluation, reports, pre-training."""

import sys

from experiments.cli.moved import MOVED
from rwkv7_jax.moved import refuse_moved

refuse_moved(MOVED, sys.argv, sys.orig_argv)
