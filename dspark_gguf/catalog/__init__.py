"""Where models come from."""

from dspark_gguf.catalog.resolve import NO_DRAFT, load_pair, resolve

__all__ = ["NO_DRAFT", "load_pair", "resolve"]
