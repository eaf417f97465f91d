"""Drafts copied from earlier text (prompt lookup): no model, and hardly any cost.

Many answers copy from their prompts: rewriting, quoting, editing code, extraction. So the last
tokens are looked up in earlier text, and what followed them there is guessed to follow here
(Saxena 2023, "Prompt Lookup Decoding").
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dspark_gguf.draft.answer_grammar import AnswerGrammar
from dspark_gguf.draft.base import Drafter, Kit, drafter
from dspark_gguf.draft.index import Index, chain
from dspark_gguf.draft.store import Store
from dspark_gguf.engine.protocol import Tokenizer, common_prefix
from dspark_gguf.noise import Draws
from dspark_gguf.records import Draft, Segment
from dspark_gguf.schedule import Plan


@drafter("lookup")
class LookupDrafter(Drafter):
    """Drafts what followed an earlier occurrence of the last tokens.

    A `store` is used where it matches better than the conversation.
    """

    name, about = "lookup", "the conversation"
    is_free = True

    def __init__(self, tokenizer: Tokenizer, store: Store | None = None) -> None:
        self.index, self.store = Index(), store
        self._end_tokens = frozenset(tokenizer.end_tokens)

    @classmethod
    def of(cls, kit: Kit) -> LookupDrafter:
        """With the store from the settings; errors are as for `Store.load`."""
        path, vocabulary, texts = kit.speculation.lookup_store, kit.vocabulary, None
        if path is not None:
            texts = Store.load(Path(path), vocabulary.fingerprint, vocabulary.n_vocab)
        return cls(vocabulary, texts)

    def restart(
        self, tokens: Sequence[int], draws: Draws, grammar: AnswerGrammar | None = None
    ) -> None:
        """Keep the part of the last conversation that is still the same."""
        self.index.trim(common_prefix(self.index.tokens, tokens))

    def propose(self, tokens: Sequence[int], plan: Plan) -> Draft:
        """A copy, as long as the plan wants it."""
        guesses, scores = self.guess(tokens, plan.length)
        return Draft(Segment.of_guesses(self.name, guesses, scores, plan.take(scores)))

    def guess(
        self, tokens: Sequence[int], most: int, drafted: Sequence[int] = ()
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """At most `most` tokens that may follow `tokens` and `drafted`, and their raw scores.

        They end where nothing matches, and after an end token.
        """
        self.index.extend(tokens[len(self.index) :])
        if drafted:
            self.index.extend(drafted)
        texts: Sequence[int] = self.index.tokens
        matches = self.index.matches()
        if self.store is not None:
            stored = self.store.matches(self.index.tokens)
            # Between equal matches the conversation's is taken.
            if stored and (not matches or stored[0].length > matches[0].length):
                texts, matches = self.store.tokens, stored
        guesses, scores = chain(texts, matches, most) if matches else ([], [])
        if drafted:
            self.index.trim(len(tokens))
        length = len(guesses)
        for k, token in enumerate(guesses):
            if token < 0 or token in self._end_tokens:
                length = k + (token >= 0)
                break
        return tuple(guesses[:length]), tuple(scores[:length])

    def ends(self, drafted: Sequence[int]) -> bool:
        """Whether nothing can follow these."""
        return bool(drafted) and drafted[-1] in self._end_tokens

    def trim(self, length: int) -> None:
        """Only committed tokens stay in the index."""
        self.index.trim(length + 1)
