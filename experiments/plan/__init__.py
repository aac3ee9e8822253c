"""Compile a training step for hardware that is not there: `python -m experiments.plan --config gsm8k --size 2.9B
--topology v5e-256`."""
