"""A conversation on top of the decoder: session, slash commands, terminal."""
