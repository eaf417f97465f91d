"""Only this folder and ``dropin/`` import llama_cpp; its failures become this package's errors."""
