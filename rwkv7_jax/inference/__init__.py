"""Many sequences over shared prefixes: scored or continued from states that are forked."""
