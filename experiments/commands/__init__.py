"""One file a command: parse its settings, call the library, print."""
