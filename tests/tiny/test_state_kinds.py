"""Every kind of memory goes into a file and comes out of it as it was."""

from __future__ import annotations

from itertools import cycle

import pytest

from dspark_gguf import Decoder, Limits
from dspark_gguf.engine.protocol import prefill
from dspark_gguf.engine.state import load_state, save_state
from tests.tiny.test_rollback import (
    GREEDY,
    KINDS,
    PLAIN,
    PROMPT,
    files,
    pair_of,
    plain_text,
    scripted,
)

__all__ = ["files"]  # a fixture
HELD, COUNT = 50, 60


@pytest.mark.parametrize("kind", KINDS)
def test_a_memory_in_a_file(files, kind, tmp_path):
    """Another context goes on from it without reading, takes back drafts, and follows an edit."""
    path = tmp_path / "state"
    with pair_of(files, kind) as pair:
        text = plain_text(pair, PROMPT, HELD + COUNT)
        edited = [*text[:20], 77, *text[21:40]]
        wanted = plain_text(pair, edited, COUNT)
        prefill(pair.target_cache, text[: HELD - 1])
        save_state(pair.target_cache, path)
    with pair_of(files, kind) as pair:
        cache = pair.target_cache
        prefill(cache, PROMPT[::-1])  # something else
        assert load_state(cache, path) == HELD - 1
        answer = scripted(pair, text, 5, cycle([2, 0, 5, 1])).answer(
            text[:HELD], Limits(max_tokens=COUNT)
        )
        assert answer.cached_tokens == HELD - 1
        assert answer.tokens == text[HELD : HELD + COUNT]
        again = Decoder.for_pair(pair, GREEDY, PLAIN).answer(edited, Limits(max_tokens=COUNT))
        assert again.tokens == wanted[len(edited) :]
