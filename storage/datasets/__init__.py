"""Readers that turn dataset layouts into one validated manifest."""
