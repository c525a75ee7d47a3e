"""The DAGs and the command line."""
