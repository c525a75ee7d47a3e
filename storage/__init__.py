"""Everything on disk: datasets, artefacts, weights, keys, tables."""
