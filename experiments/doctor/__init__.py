"""What is wrong with a machine, a checkpoint, a state, one line each."""
