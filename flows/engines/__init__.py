"""What carries a run out: the DAG, and the two engines."""
