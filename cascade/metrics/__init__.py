"""Exact metrics from histograms of float16 scores."""
