"""CLIP: tokens of images, features of sentences."""
