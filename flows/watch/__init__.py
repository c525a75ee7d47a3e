"""Runs held against each other, now and on a schedule."""
