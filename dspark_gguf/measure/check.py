"""Is the speculative text the plain text? Both ways, greedy, token by token."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dspark_gguf.config import Sampling, Settings
from dspark_gguf.decoder import Decoder
from dspark_gguf.dist import Dist
from dspark_gguf.engine.pair import Pair
from dspark_gguf.sampling import Row, Sampler, margin
from dspark_gguf.tally import Answer
from dspark_gguf.visible import counted

#: How far logits may move when more rows are computed in the same pass: up to about 1.0 was seen
#: with 4-bit weights on a CPU. A wider gap is not rounding.
NEAR_TIE = 1.0

#: Tokens of a draft by default: more rows than the kernels for small batches take.
_DRAFTS = 8

Verdict = Literal["equal", "near-tie", "wrong"]


class WitnessSampler(Sampler):
    """A greedy sampler that notes the best token of each row.

    Verification asks for one distribution per emitted token and in order, so the k-th note belongs
    to the k-th token of the answer.
    """

    def __init__(self, settings: Sampling, end_tokens: Sequence[int]) -> None:
        super().__init__(settings, end_tokens)
        self.best: list[int] = []  # the most probable token of each row
        self.margins: list[float] = []  # the gap between its two best logits

    def __call__(self, row: Row, *args: Any, **options: Any) -> Dist:
        """The distribution of the next token."""
        dist = super().__call__(row, *args, **options)
        self.best.append(dist.top)
        self.margins.append(margin(row))
        return dist


@dataclass(frozen=True, slots=True)
class Check:
    """The result of a comparison."""

    #: wrong: the first difference is too large for rounding, or a token was emitted that is not the
    #: best of the target's own row.
    verdict: Verdict
    tokens: int  # speculative tokens compared, up to and with the first difference
    accepted: int  # draft tokens that were accepted: without any, nothing was tested
    position: int | None = None  # place of the first difference in the answer
    margin: float | None = None  # the wider of the two gaps, in logits, between the best two there
    plain: str = ""  # text of the first token that differs, plain decoding
    speculative: str = ""  # the same, speculative decoding
    drafted: int = 0  # draft tokens that were verified

    def __str__(self) -> str:
        if self.position is None:
            same = counted(self.tokens, "token")
            said = f"equal: {same}; of {self.drafted} drafted, {self.accepted} stood"
            return said if self.drafted else f"{said}: nothing was tested, try another prompt"
        return (
            f"{self.verdict}: token {self.position} is {self.plain!r} plain and "
            f"{self.speculative!r} speculative; the best two logits there are {self.margin:.3f} "
            f"apart (up to {NEAR_TIE} is rounding); {self.accepted} draft tokens accepted"
        )


def report(pair: Pair, settings: Settings, prompt: Sequence[int], as_json: bool) -> int:
    """Print what `check` finds; returns the exit code, 1 when it is wrong."""
    found = check(pair, prompt, settings)
    print(json.dumps(asdict(found)) if as_json else found)  # noqa: T201
    return 1 if found.verdict == "wrong" else 0


def check(pair: Pair, prompt: Sequence[int], settings: Settings) -> Check:
    """Decode `prompt` plainly and with forced drafts, both greedy, and compare."""
    asked = settings.speculation
    force: dict[str, Any] = {"mode": "on"}
    if asked.rule == "auto" and asked.draft_min_prob is None:
        # However unsure the draft is, and whether or not it pays: a rejection is tested too.
        force |= {"draft_min_prob": 0.0, "draft_max": asked.draft_max or _DRAFTS}
    plain, plain_rows = _answer(pair, prompt, settings, {"mode": "off"})
    fast, rows = _answer(pair, prompt, settings, force)
    differs = _first_difference(fast.tokens, rows.best)
    wrong = differs is not None  # not even the best token of the target's own row
    wanted = rows.best if wrong else plain.tokens
    if differs is None:
        differs = _first_difference(plain.tokens, fast.tokens)
    accepted = fast.tally.accepted
    drafted = fast.tally.drafted
    if differs is None:
        return Check("equal", len(plain.tokens), accepted, drafted=drafted)
    gap = max(plain_rows.margins[differs], rows.margins[differs])
    verdict: Verdict = "wrong" if wrong or gap > NEAR_TIE else "near-tie"
    one, other = (
        pair.vocabulary.detokenize(tokens[differs : differs + 1], special=True)
        for tokens in (wanted, fast.tokens)
    )
    return Check(verdict, differs + 1, accepted, differs, gap, one, other, drafted)


def _answer(
    pair: Pair, prompt: Sequence[int], settings: Settings, how: Mapping[str, Any]
) -> tuple[Answer, WitnessSampler]:
    """Answer from empty caches, so that neither way reuses what the other computed."""
    sampling = settings.sampling.model_copy(update={"temperature": 0.0})
    speculation = settings.speculation.model_copy(update=dict(how))
    decoder = Decoder.for_pair(pair, sampling, speculation)
    decoder.sampler = witness = WitnessSampler(sampling, pair.vocabulary.end_tokens)
    decoder.reset()
    return decoder.answer(prompt, settings.limits), witness


def _first_difference(left: Sequence[int], right: Sequence[int]) -> int | None:
    pairs = enumerate(zip(left, right, strict=False))
    return next((k for k, (one, other) in pairs if one != other), None)
