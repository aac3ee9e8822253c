"""The results table: every method on every benchmark with several seeds, kept cell by cell."""
