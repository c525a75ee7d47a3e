"""Tables of finished runs: results, intervals, comparisons, ablations, reproductions."""
