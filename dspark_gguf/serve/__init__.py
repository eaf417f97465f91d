"""The HTTP server: one thread runs the models; a formatter for each API writes the responses."""
