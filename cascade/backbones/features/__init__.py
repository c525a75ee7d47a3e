"""Frozen networks that see no text: features of photographs."""
