"""How close the draws were where answers of a server part from those that were given alone."""

from __future__ import annotations

from dspark_gguf import Decoder, Pair, Speculation, load_pair
from dspark_gguf.config import Settings
from dspark_gguf.dist import Dist
from dspark_gguf.measure.check import NEAR_TIE, WitnessSampler
from dspark_gguf.noise import GumbelDraw, Noise
from dspark_gguf.serve.asked import Desk
from dspark_gguf.serve.bodies import ChatBody, CompletionBody
from dspark_gguf.serve.messages import MessagesBody
from dspark_gguf.serve.responses import ResponsesBody
from dspark_gguf.serve.turns import Turn


def near_ties(
    model: str, made: list, alone: list[list[str]], different: list[tuple[int, list[str]]]
) -> int:
    """Decodes what differs again, and says how close each draw was; how many were not."""
    wrong, known = 0, {}
    with load_pair(model) as pair:
        for k, said in different:
            if k not in known:
                known[k] = [margins(pair, turn) for turn in _turns(pair, *made[k])]
            for mine, theirs, (ends, gaps) in zip(said, alone[k], known[k], strict=True):
                if mine == theirs:
                    continue
                body = made[k][1]
                place = _parted(mine, theirs) - (len(body["prompt"]) if body.get("echo") else 0)
                first = next((n for n, end in enumerate(ends) if end > place), len(ends) - 1)
                is_text = "tools" not in body  # else it is not all that was said
                gap = gaps[first] if is_text else min(gaps)
                wrong += gap > NEAR_TIE
                print(f"request {k}, token {first} of {len(ends)}: {gap:.3f} apart", flush=True)
    return wrong


def _turns(pair: Pair, path: str, body: dict) -> list[Turn]:
    kinds = {"chat/completions": ChatBody, "completions": CompletionBody,
             "messages": MessagesBody, "responses": ResponsesBody}  # fmt: skip
    asked = kinds[path.removeprefix("/v1/")](**body).asked()
    asked.prompt = body.get("prompt", "")
    return [turn for turn, _ in Desk(pair, Settings()).turns(asked)]


def margins(pair: Pair, turn: Turn) -> tuple[list[int], list[float]]:
    """Characters up to the end of each token, and by how much the token won: nats or logits."""
    decoder = Decoder.for_pair(pair, turn.sampling, Speculation(mode="off"))
    decoder.sampler = witness = WitnessSampler(turn.sampling, pair.vocabulary.end_tokens)
    gaps: list[float] = []

    class Draw(GumbelDraw):
        def scored(self, dist: Dist) -> tuple[int, float]:
            token, gap = super().scored(dist)
            gaps.append(gap)
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
    return ends, (witness.margins if greedy else gaps)[: len(ends)]


def _parted(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))
