"""Check that llama.cpp serves the draft as trained; if not, find the likely cause."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import torch

from dspark_gguf.calibration import Calibration
from dspark_gguf.config import Limits, Sampling, Speculation
from dspark_gguf.decoder import Decoder
from dspark_gguf.engine.dflash import BlockDraft
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.engine.pair import Pair
from dspark_gguf.errors import DSparkError
from dspark_gguf.train.batches import Batches
from dspark_gguf.train.network import Anchors, Network
from dspark_gguf.train.record import Teacher

_BLOCKS = Speculation(mode="on", drafter="model", draft_min_prob=0.0, draft_max=64)
#: Tokens per pass, served over trained, and share of equal first guesses below which something is
#: wrong. Measured were 0.998 and 0.996; a draft in Q8_0 differs in a few more near-ties.
_LEAST_TOKENS, _LEAST_EQUAL = 0.96, 0.90
#: Blocks to compare, and tokens of each answer: enough to see a few percent, quick if slow.
_BLOCKS_ENOUGH, _TOKENS = 300, 96
#: Standard errors that rule out chance; of fewer answers, all may begin with a near-tie.
_SURE, _ANSWERS_ENOUGH = 3.0, 4
#: Share of equal guesses that identifies a cause.
_LIKELY = 0.8


@dataclass(slots=True)
class Served:
    """The same blocks, as served and as computed by the training code.

    `anchors` are (conversation, position); `guesses` [anchors, block] are those served, padded with
    -1; `accepted` and `trained` [anchors] count the accepted guesses, as served and as trained.
    `calibration` has learned from every served block, in so many `answers`.
    """

    anchors: list[tuple[int, int]] = field(default_factory=list)
    guesses: list[list[int]] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)
    equal: float = 1.0  # share of equal first guesses
    calibration: Calibration = field(default_factory=Calibration)
    answers: int = 0

    @property
    def tokens_a_pass(self) -> float:
        """Tokens per pass, as served."""
        return 1 + float(np.mean(self.accepted)) if self.anchors else 1.0

    @property
    def expected(self) -> float:
        """Tokens per pass, as trained."""
        return 1 + float(np.mean(self.trained)) if self.anchors else 1.0

    @property
    def is_right(self) -> bool:
        """Whether nothing is lost in serving, as far as so many blocks can tell."""
        if not self.anchors:
            return self.answers < _ANSWERS_ENOUGH
        chance = _SURE / len(self.anchors) ** 0.5
        lost = np.subtract(self.trained, self.accepted)
        few = lost.mean() - (1 - _LEAST_TOKENS) * self.expected > chance * lost.std()
        other = _LEAST_EQUAL - self.equal > chance * (_LEAST_EQUAL * (1 - _LEAST_EQUAL)) ** 0.5
        return not (few or other)


def serve(pair: Pair, network: Network, batches: Batches, ks: Sequence[int]) -> Served:
    """Answer held-out prompts with the draft, and compare block by block."""
    found, size = Served(), network.shape.block
    decoder = Decoder.for_pair(pair, Sampling(temperature=0), _BLOCKS)
    for k in ks:
        if len(found.anchors) >= _BLOCKS_ENOUGH:
            break
        found.answers += 1
        talk = batches.conversations[k]
        limits = Limits(max_tokens=min(_TOKENS, len(talk.answer)))
        text, last = list(talk.prompt), len(talk.prompt) + (limits.max_tokens or 0) - size
        for round in decoder.generate(talk.prompt, limits):
            place = len(text) - 1
            text += round.tokens
            for _, segment, outcomes in round.draft.outcomes(round.tokens):
                found.calibration.observe(segment.scores, outcomes)
            if text != talk.tokens[: len(text)] and place < last:
                # A near-tie went the other way: from here on the text differs.
                last = place
            if round.drafted and place < last:
                found.anchors.append((k, place))
                found.guesses.append([*round.draft.tokens, *[-1] * size][:size])
                found.accepted.append(round.accepted)
    guesses, accepted = _computed(network, batches, found.anchors)
    found.trained = accepted
    if found.anchors:
        found.equal = _equal(np.array(found.guesses), guesses, 0)
    return found


def require_right(found: Served, pair: Pair, network: Network, batches: Batches) -> None:
    """Raise an error with the likely cause if the served draft falls short of the trained one."""
    if found.is_right:
        return
    problem = (
        f"the draft is served {found.tokens_a_pass:.2f} tokens a pass where training says "
        f"{found.expected:.2f}, and {found.equal:.0%} of its first guesses are the same"
    )
    raise DSparkError(f"{problem}: {_cause(found, pair, network, batches)}", _HINT)


_HINT = "Do not use this file; report this with the target's name and the version."


def _cause(found: Served, pair: Pair, network: Network, batches: Batches) -> str:
    assert pair.draft is not None
    layers = BlockDraft(read_header(pair.draft.path)).target_layers
    if tuple(layers) != network.shape.target_layers:
        wanted = ", ".join(map(str, network.shape.target_layers))
        return f"wrong layer: the file reads the inputs of {layers}, trained were {wanted}"
    if not found.anchors:
        return "the target answers differently than before: another file, options or template"
    k = found.anchors[0][0]
    tokens = batches.conversations[k].tokens
    teacher = Teacher(pair.target, network.shape.target_layers, len(tokens), pair.interrupt)
    with closing(teacher):
        both = batches.records[k], teacher.read(tokens)
    recorded, now = (np.asarray(each.features[1:], np.float32) for each in both)
    if np.abs(recorded - now).mean() > 0.1 * np.abs(now).mean():
        return "wrong layer or target: its layer inputs differ from the recorded ones"
    served = np.array(found.guesses)
    rows, _ = _computed(network, batches, found.anchors)
    for shift in (1, -1):
        if _equal(served, rows, shift) > _LIKELY:
            return f"shifted position: row {shift:+d} of the block is served for each guess"
        moved, _ = _computed(network, batches, found.anchors, shift)
        if _equal(served, moved, 0) > _LIKELY:
            return f"shifted position: the layer inputs are off by {shift:+d} tokens"
    return "weights or rotary halves in another order, or another template, than in training"


def _equal(served: np.ndarray, computed: np.ndarray, shift: int) -> float:
    """Share of equal first guesses, with one side shifted by `shift` rows."""
    left, right = served[:, max(0, -shift)], computed[:, max(0, shift)]
    there = left >= 0
    return float((left == right)[there].mean()) if there.any() else 0.0


@torch.no_grad()
def _computed(
    network: Network, batches: Batches, anchors: Sequence[tuple[int, int]], shift: int = 0
) -> tuple[np.ndarray, list[int]]:
    """The network's guesses at these anchors [anchors, block], and how many are accepted.

    `shift` moves the features of the context by so many tokens.
    """
    network.eval()
    guesses, accepted = [], []
    for k in dict.fromkeys(k for k, _ in anchors):
        batch = batches.served(k)
        at = batch.anchors
        if shift:
            features = torch.roll(at.features, shift, 1)
            features[:, 0] = at.features[:, max(0, -shift)]
            at = Anchors(features, at.places, at.tokens)
        ids, _ = network.guess(network(at).float(), at.tokens)
        run = ((ids == batch.best) & batch.valid).cumprod(-1).sum(-1)[0]
        place_of = {int(place): j for j, place in enumerate(at.places[0])}
        for own, place in anchors:
            if own == k:
                guesses.append(ids[0, place_of[place]].tolist())
                accepted.append(int(run[place_of[place]]))
    return np.array(guesses), accepted
