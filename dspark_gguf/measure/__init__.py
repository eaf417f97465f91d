"""Measurements of the decoder at work."""
