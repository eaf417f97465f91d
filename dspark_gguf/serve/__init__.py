"""The HTTP server: one engine thread, and thin translations of one stream of pieces."""
