"""Speed and memory of the whole model against its peers."""
