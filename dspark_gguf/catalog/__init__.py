"""Where models come from."""

from dspark_gguf.catalog.resolve import load_pair, resolve

__all__ = ["load_pair", "resolve"]
