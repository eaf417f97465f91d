"""A drop-in for ``llama_cpp.Llama`` that speculates."""
