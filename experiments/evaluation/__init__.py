"""Benchmarks and held-out losses of a frozen model from any initial states."""
