"""Everything that reads configs, files, data and clocks: runs, evaluation, reports, pre-training."""
