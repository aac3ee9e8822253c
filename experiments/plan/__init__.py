"""Compiles a training step for hardware that is not there (`rwkv7 plan`)."""
