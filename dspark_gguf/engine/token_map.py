"""Compare two vocabularies: which tokens are the same, and how often token boundaries align."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import numpy.typing as npt

from dspark_gguf.engine.vocabulary import Vocabulary

#: Vocabularies that share this much only differ in a few tokens: a table of ids is enough.
_NEARLY_ALL = 0.95
#: A little of each kind of text that people generate with these models.
_SAMPLE = """\
Could you explain why the sky is blue? It's Rayleigh scattering: short waves are scattered more.
def total(prices: dict[str, float]) -> float:
    return sum(price * 1.19 for price in prices.values() if price > 0)
1. Preheat the oven to 220 degrees, then bake for 25-30 minutes.
The parliament's decision, announced on 14 March 2023, surprised many economists.
Natürlich können wir das übersetzen. Où est la bibliothèque? ¿Qué hora es?
{"name": "get_weather", "arguments": {"city": "Berlin", "days": 3}}
"""


class TokenMap:
    """Which ids of two vocabularies have the same text."""

    def __init__(self, target: Vocabulary, draft: Vocabulary) -> None:
        # Of tokens with the same text, such as a letter and its byte, tokenizers use the last.
        ids = {draft.piece(token, special=True): token for token in range(draft.n_vocab)}
        texts = [target.piece(token, special=True) for token in range(target.n_vocab)]
        found = np.array([ids.get(text, -1) if text else -1 for text in texts], np.int32)
        for ours, theirs in ((target.eos, draft.eos), (target.bos, draft.bos)):
            if ours >= 0 and theirs >= 0:
                found[ours] = theirs
        #: The target's ids that the draft has.
        self.known: npt.NDArray[np.int64] = np.flatnonzero(found >= 0)
        named = sum(map(bool, texts)), sum(map(bool, ids))
        #: Share of the larger vocabulary's tokens that the other one also has.
        self.share = len(self.known) / max(1, *named)
        for token in np.flatnonzero(found < 0):
            text = texts[token].decode("utf-8", "replace")
            found[token] = next(iter(draft.tokenize(text, special=False, add_bos=False)), 0)
        #: Draft id of each target id; if the draft lacks the token, that of its first piece.
        self.draft_ids: npt.NDArray[np.int32] = found


def token_map(target: Vocabulary, draft: Vocabulary) -> TokenMap | None:
    """The table, if the vocabularies are nearly the same."""
    sizes = sorted((target.n_vocab, draft.n_vocab))
    same = target.kind == draft.kind and target.adds_bos == draft.adds_bos
    if not same or sizes[0] < _NEARLY_ALL * sizes[1]:
        return None
    found = TokenMap(target, draft)
    return found if found.share >= _NEARLY_ALL else None


def share_aligned(target: Vocabulary, draft: Vocabulary) -> float:
    """Share of the target's tokens, in ordinary text, that end where a draft token ends."""
    ends = [
        set(accumulate(len(words.piece(token)) for token in words.tokenize(_SAMPLE, add_bos=False)))
        for words in (target, draft)
    ]
    return len(ends[0] & ends[1]) / max(1, len(ends[0]))
