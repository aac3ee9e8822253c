"""Test-time scaling on the pocket benchmarks with chains of thought: every method at equal numbers of chains."""
