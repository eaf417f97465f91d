"""JSON schemas as grammars (GBNF)."""

from dspark_gguf.engine.schema.convert import schema_to_gbnf as schema_to_gbnf
