"""What the tests of the loop and the drafters share: small worlds and plain decoding."""

from __future__ import annotations

from dataclasses import dataclass, field

from dspark_gguf.config import Limits, Sampling, Speculation
from dspark_gguf.decoder import Decoder
from dspark_gguf.draft import ModelDrafter
from dspark_gguf.sampling import Sampler
from dspark_gguf.schedule import make_stopping_rule
from dspark_gguf.testing import TableModel
from dspark_gguf.verify import make_rule


class Letters:
    """A vocabulary of `n` tokens: letters, and an end token last. Small, so things do happen."""

    def __init__(self, n):
        self.n_tokens, self.end_tokens = n, (n - 1,)

    def piece(self, token):
        return b"" if token in self.end_tokens else b"abcdefghijklmnop"[token : token + 1]


@dataclass
class World:
    """Rows of a target and a draft, a tokenizer, and how decoders on them are set."""

    target_rows: object
    draft_rows: object
    tokenizer: object
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0))
    speculation: Speculation = field(default_factory=Speculation)
    n_ctx: int = 64
    draft_n_ctx: int = 64
    drafter_kind: type = ModelDrafter

    def decoder(self, rule=None, stopping_rule=None):
        """A decoder with new caches."""
        sampler = Sampler(self.sampling, self.tokenizer.end_tokens)
        cache = TableModel(self.draft_rows, self.draft_n_ctx, max_rows=1)
        return Decoder(
            target=TableModel(self.target_rows, self.n_ctx),
            tokenizer=self.tokenizer,
            drafter=self.drafter_kind(cache, sampler, self.tokenizer),
            stopping_rule=stopping_rule or make_stopping_rule(self.speculation),
            rule=rule or make_rule(self.speculation),
            sampler=sampler,
            seed=self.sampling.seed,
        )

    def plain(self, prompt, limits=None, rng=None):
        """Tokens, text and reason of plain decoding: no cache, no rounds, no draft."""
        limits = limits or Limits()
        sampler = Sampler(self.sampling, self.tokenizer.end_tokens)
        answer, text, reason = [], "", "length" if limits.max_tokens == 0 else None
        while reason is None:
            before = (*prompt, *answer)
            law = sampler(self.target_rows(before), before)
            answer.append(law.draw(rng))
            text += self.tokenizer.piece(answer[-1]).decode()
            places = [text.find(stop) for stop in limits.stop if stop in text]
            if answer[-1] in self.tokenizer.end_tokens or places:
                text, reason = text[: min(places, default=None)], "stop"
            elif len(answer) == limits.max_tokens:
                reason = "length"
            elif len(prompt) + len(answer) == self.n_ctx:
                reason = "context"
        return answer, text, reason


def followed(decoder, prompt, rounds):
    """Pass `rounds` on and hold the caches to their promise at every yield."""
    committed, target, draft = list(prompt), decoder.target, decoder.drafter.cache
    for round in rounds:
        committed += round.tokens
        assert target.tokens == committed[:-1]
        assert draft.length < len(committed)
        assert draft.tokens == committed[: draft.length]
        yield round
