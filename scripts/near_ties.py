"""How close two tokens were where an answer of the server differs from the one given alone."""

from __future__ import annotations

import math
from typing import Any

from dspark_gguf import Decoder, Pair, Speculation, load_pair
from dspark_gguf.config import Sampling, Settings
from dspark_gguf.dist import Dist
from dspark_gguf.measure.check import NEAR_TIE, WitnessSampler
from dspark_gguf.noise import GumbelDraw, Noise
from dspark_gguf.sampling import Row, Sampler
from dspark_gguf.serve.bodies import ChatBody, CompletionBody
from dspark_gguf.serve.messages import MessagesBody
from dspark_gguf.serve.parsing import RequestParser
from dspark_gguf.serve.responses import ResponsesBody
from dspark_gguf.serve.turns import Turn

#: Nats by which the cut-offs of top-p and min-p are moved to see whether rounding could cross them.
_EDGES = (0.02, 0.1, 0.5)


def near_ties(
    model: str, made: list, alone: list[list[str]], different: list[tuple[int, list[str]]]
) -> int:
    """Decode each different answer again and print how close the two tokens were.

    Returns the number of answers where they were not close.
    """
    wrong, known = 0, {}
    with load_pair(model) as pair:
        for k, said in different:
            if len(said) != len(alone[k]):  # such as an error instead of two answers
                wrong += 1
                print(f"request {k}: {said}", flush=True)
                continue
            body = made[k][1]
            if k not in known:
                known[k] = [margins(pair, turn) for turn in _turns(pair, *made[k])]
            echo = len(body["prompt"]) if body.get("echo") else 0
            for mine, theirs, (plain, ends, gaps) in zip(said, alone[k], known[k], strict=True):
                gap, first = 0.0, 0
                if mine != theirs and "tools" in body:  # the arguments are only a part of the text
                    gap = min(gaps)
                elif mine != theirs:
                    # The answer given alone had drafts, so it may differ from plain decoding too.
                    for text in {mine[echo:], theirs[echo:]} - {plain}:
                        place = _parted(text, plain)
                        first = next((n for n, end in enumerate(ends) if end > place), -1)
                        # At the end of a token, the other answer may have a longer token there.
                        least = max(0, first - 2) if place in ends else first
                        gap = max(gap, min(gaps[least : first + 1] or gaps[-1:]))
                wrong += gap > NEAR_TIE
                print(f"request {k}, token {first} of {len(ends)}: {gap:.3f} apart", flush=True)
    return wrong


def _turns(pair: Pair, path: str, body: dict) -> list[Turn]:
    kinds = {"chat/completions": ChatBody, "completions": CompletionBody,
             "messages": MessagesBody, "responses": ResponsesBody}  # fmt: skip
    asked = kinds[path.removeprefix("/v1/")](**body).to_request()
    asked.prompt = body.get("prompt", "")
    return [turn for turn, _ in RequestParser(pair, Settings()).turns(asked)]


def margins(pair: Pair, turn: Turn) -> tuple[str, list[int], list[float]]:
    """The plain answer, the character where each of its tokens ends, and the margin of each token.

    The margin is the distance to the second best token, in nats, or in logits without sampling. If
    another token would be drawn with a slightly moved cut-off, it is the distance to that cut-off.
    """
    decoder = Decoder.for_pair(pair, turn.sampling, Speculation(mode="off"))
    decoder.sampler = witness = Edges(turn.sampling, pair.vocabulary.end_tokens)
    gaps: list[float] = []

    class Draw(GumbelDraw):
        def scored(self, dist: Dist) -> tuple[int, float]:
            token, gap = super().scored(dist)
            others = (
                edge
                for edge, other in witness.others
                if super(Draw, self).scored(other)[0] != token
            )
            gaps.append(min(gap, *others, math.inf))
            return token, gap

    class Noted(Noise):
        def at(self, position: int) -> Draw:
            return Draw(super().at(position).key)

    tokens, ends = [], []
    draws = Noted(turn.draws.key)
    for round in decoder.generate(turn.prompt, turn.limits, draws):
        tokens += round.tokens
        ends.append(len(pair.vocabulary.detokenize(tokens)))
    greedy = turn.sampling.temperature == 0
    text = pair.vocabulary.detokenize(tokens)
    return text, ends, (witness.margins if greedy else gaps)[: len(ends)]


class Edges(WitnessSampler):
    """Also computes `others` for the last row: its distributions with moved cut-offs."""

    def __init__(self, settings: Sampling, end_tokens: tuple[int, ...]) -> None:
        super().__init__(settings, end_tokens)
        self._samplers = [
            (abs(edge), Sampler(_moved(settings, edge), end_tokens))
            for size in (_EDGES if settings.temperature else ())
            for edge in (size, -size)
        ]
        self.others: list[tuple[float, Dist]] = []

    def __call__(self, row: Row, *args: Any, **options: Any) -> Dist:
        """The distribution of the next token."""
        self.others = [(edge, one(row, *args, **options)) for edge, one in self._samplers]
        return super().__call__(row, *args, **options)


def _moved(settings: Sampling, edge: float) -> Sampling:
    """Cut-offs that let more tokens through, or fewer if `edge` is negative."""
    top_p = 1 - (1 - settings.top_p) * math.exp(-edge)
    values = {
        "min_p": min(1.0, settings.min_p * math.exp(-edge)), "top_p": max(top_p, 1e-9),
        "top_k": settings.top_k and max(1, settings.top_k + (1 if edge > 0 else -1)),
    }  # fmt: skip
    return settings.model_copy(update=values)


def _parted(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))
