"""The only part, with ``plugin.py``, that imports llama_cpp.

What llama.cpp says when it fails is translated here, once, into the errors of this package.
"""
