"""A model that says one text, whatever it is asked."""

from __future__ import annotations

import gguf

from tests.serve.running import THINKING
from tests.tiny_dflash import N_TOKENS, write_cycle_target
from tests.tiny_gguf import IM_END, Tiny, byte_names

#: Ids of bytes that no ASCII text has: their tokens become the parts of the text.
_FREE = range(128, 250)


def write_script(path, text, template=THINKING):
    """Its prompts end with a line end, and there the text begins; then it is over."""
    size = 5
    parts = [text[k : k + size] for k in range(0, len(text), size)]
    while len(set(parts)) < len(parts) or min(map(len, parts)) < 2:
        size += 1
        parts = [text[k : k + size] for k in range(0, len(text), size)]
    return write_parts(path, parts, template=template)


def write_parts(path, parts, control=(), template=THINKING):
    """It says these parts, bytes or text, each a token; those in `control` are control tokens."""
    assert len(set(parts)) == len(parts) < len(_FREE)
    names = byte_names()
    plain = [part.encode() if isinstance(part, str) else part for part in parts]
    spelled = ["".join(names[byte] for byte in part) for part in plain]
    ids = list(_FREE[: len(parts)])
    successor = list(range(N_TOKENS))
    for one, other in zip([ord("\n"), *ids], [*ids, IM_END], strict=True):
        successor[one] = other
    changed = tuple(zip(ids, spelled, strict=True))
    tiny = Tiny(context=1024, template=template, changed=changed)
    write_cycle_target(path, successor, tiny)
    reader = gguf.GGUFReader(path, "r+")
    kinds = reader.fields["tokenizer.ggml.token_type"]
    for token, part in zip(ids, parts, strict=True):
        if part in control:
            kinds.parts[kinds.data[token]][:] = gguf.TokenType.CONTROL
    reader.data.flush()
    return path
