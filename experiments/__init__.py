"""Everything that reads configs, files, data and clocks: commands, runs, evaluation, reports, pre-training."""

import sys

from experiments.cli.moved import refuse_moved

refuse_moved(sys.argv, sys.orig_argv)
