"""The larger model: in this process, behind HTTP, or replayed from a file."""
