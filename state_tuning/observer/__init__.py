"""The observer: a smaller model that learns the state dynamics of a larger one."""
