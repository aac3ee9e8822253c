"""The pocket world: an invented, consistent world, text about it and four small benchmarks, all made from seeds."""
