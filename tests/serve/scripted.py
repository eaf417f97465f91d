"""A model that says one text, whatever it is asked."""

from __future__ import annotations

from tests.serve.running import THINKING
from tests.tiny_dflash import N_TOKENS, write_cycle_target
from tests.tiny_gguf import IM_END, Tiny, byte_names

#: Ids of bytes that no ASCII text has: their tokens become the parts of the text.
_FREE = range(128, 250)


def write_script(path, text, template=THINKING):
    """Its prompts end with a line end, and there the text begins; then it is over."""
    names, size = byte_names(), 5
    parts = [text[k : k + size] for k in range(0, len(text), size)]
    while len(set(parts)) < len(parts) or min(map(len, parts)) < 2:
        size += 1
        parts = [text[k : k + size] for k in range(0, len(text), size)]
    assert len(parts) < len(_FREE)
    spelled = ["".join(names[byte] for byte in part.encode()) for part in parts]
    ids = list(_FREE[: len(parts)])
    successor = list(range(N_TOKENS))
    for one, other in zip([ord("\n"), *ids], [*ids, IM_END], strict=True):
        successor[one] = other
    changed = tuple(zip(ids, spelled, strict=True))
    tiny = Tiny(context=1024, template=template, changed=changed)
    return write_cycle_target(path, successor, tiny)
