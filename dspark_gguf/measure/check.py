"""Is the speculative text the plain text? Both ways, greedy, token by token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from dspark_gguf.config import Sampling, Settings
from dspark_gguf.decoder import Decoder
from dspark_gguf.dist import Dist
from dspark_gguf.engine.pair import Pair
from dspark_gguf.errors import UsageError
from dspark_gguf.records import Answer
from dspark_gguf.sampling import Row, Sampler, margin

#: Logits that a row may move with the number of rows computed beside it: up to about 1.0 was seen
#: with 4-bit weights on a CPU. A gap wider than this is no rounding.
NEAR_TIE = 1.0


Verdict = Literal["equal", "near-tie", "wrong"]


class MarginSampler(Sampler):
    """A sampler that notes, for each row it is shown, the gap between the two best logits.

    Verification asks for one law per emitted token and in order, so the k-th margin belongs to
    the k-th token of the answer.
    """

    def __init__(self, settings: Sampling, end_tokens: Sequence[int]) -> None:
        super().__init__(settings, end_tokens)
        self.margins: list[float] = []

    def __call__(self, row: Row, history: Sequence[int]) -> Dist:
        """The law of the next token."""
        self.margins.append(margin(row))
        return super().__call__(row, history)


@dataclass(frozen=True, slots=True)
class Check:
    """What came of comparing.

    Attributes:
        verdict: equal; near-tie: the first difference is a matter of rounding; wrong: it is not.
        tokens: tokens compared, up to and with the first difference.
        position: place of the first difference in the answer, None when equal.
        margin: the wider of the two gaps, in logits, between the best two tokens there.
        plain: text of the first token that differs, plain decoding.
        speculative: the same, speculative decoding.
        accepted: draft tokens that were accepted: without any, nothing was tested.

    """

    verdict: Verdict
    tokens: int
    position: int | None
    margin: float | None
    plain: str
    speculative: str
    accepted: int

    def __str__(self) -> str:
        if self.position is None:
            return f"equal: {self.tokens} tokens, {self.accepted} of them drafted"
        return (
            f"{self.verdict}: token {self.position} is {self.plain!r} plain and "
            f"{self.speculative!r} speculative; the best two logits there are {self.margin:.3f} "
            f"apart (up to {NEAR_TIE} is rounding); {self.accepted} drafted tokens accepted"
        )


def report(pair: Pair, settings: Settings, prompt: Sequence[int], as_json: bool) -> int:
    """Print what `check` finds; returns the exit code, 1 when it is wrong."""
    if not pair.can_speculate:
        raise UsageError("a draft to compare with", "plain decoding only", "name one with -d")
    found = check(pair, prompt, settings)
    print(json.dumps(asdict(found)) if as_json else found)  # noqa: T201
    return 1 if found.verdict == "wrong" else 0


def check(pair: Pair, prompt: Sequence[int], settings: Settings) -> Check:
    """Decode `prompt` plainly and speculatively, both greedy, and compare.

    Each way starts from empty caches, so that neither reads what the other computed.

    Raises:
        Cancelled: the user interrupted.

    """
    greedy = settings.sampling.model_copy(update={"temperature": 0.0})
    runs: list[tuple[Answer, list[float]]] = []
    for mode in ("off", "on"):
        speculation = settings.speculation.model_copy(update={"mode": mode})
        decoder = Decoder.for_pair(pair, greedy, speculation)
        sampler = MarginSampler(greedy, pair.vocabulary.end_tokens)
        decoder.sampler = sampler
        decoder.target.trim(0)
        decoder.drafter.trim(0)
        runs.append((decoder.answer(prompt, settings.limits), sampler.margins))
    (plain, plain_margins), (speculative, speculative_margins) = runs
    accepted = speculative.tally.accepted
    for k, (one, other) in enumerate(zip(plain.tokens, speculative.tokens, strict=False)):
        if one != other:
            gap = max(plain_margins[k], speculative_margins[k])
            verdict: Verdict = "near-tie" if gap <= NEAR_TIE else "wrong"
            texts = [pair.vocabulary.detokenize([t], special=True) for t in (one, other)]
            return Check(verdict, k + 1, k, gap, texts[0], texts[1], accepted)
    return Check("equal", len(plain.tokens), None, None, "", "", accepted)
