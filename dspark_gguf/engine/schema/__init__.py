"""JSON schemas as grammars (GBNF)."""

from dspark_gguf.engine.schema.making import schema_to_gbnf as schema_to_gbnf
