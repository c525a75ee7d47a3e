"""Segment Anything: encoder, prompt coordinates, batched decoder."""
