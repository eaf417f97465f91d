"""The HTTP server: one engine thread, and a thin translation of its stream for each protocol."""
