"""Scripts that print a ratio against a named peer, or a table, in one run."""
