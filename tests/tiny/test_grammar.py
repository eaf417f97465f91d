"""Grammars: what may follow, what is proposed without a draft, and that draws stay llama.cpp's."""

import numpy as np

from dspark_gguf.config import Sampling
from dspark_gguf.draft.answer_grammar import AnswerGrammar, Choices, Constrained, allowed_prefix
from dspark_gguf.draft.base import Drafter
from dspark_gguf.draft.grammar import GrammarDrafter, forced_tokens, paying
from dspark_gguf.records import Draft, Segment
from dspark_gguf.sampling import Sampler
from dspark_gguf.schedule import Bounded


class Spelled:
    """A grammar that lets one text pass, in any tokens."""

    def __init__(self, text, tokens, at=0):
        self.text, self.tokens, self.at = text, tokens, at

    def fork(self):
        return Spelled(self.text, self.tokens, self.at)

    def allows(self, token):
        piece = self.tokens[token]
        return bool(piece) and self.text.startswith(piece, self.at)

    def accept(self, token):
        assert self.allows(token)
        self.at += len(self.tokens[token])

    def among(self, ids):
        return np.array([token for token in ids if self.allows(token)], dtype=np.int32)

    def few(self):
        return self.among(range(len(self.tokens)))


TOKENS = [b"n", b"na", b"me", b"m", b"e", b"name", b"x"]


def test_forced():
    """The longest token, unless another was taken there before; never more than asked."""
    choices = Choices(TOKENS)
    assert forced_tokens(Spelled(b"namename", TOKENS), 6, choices, 9) == ([5, 5], [0.5, 0.5])
    assert forced_tokens(Spelled(b"namename", TOKENS), 6, choices, 1)[0] == [5]
    choices.observe(6, Spelled(b"name", TOKENS).few(), 1)
    assert forced_tokens(Spelled(b"name", TOKENS), 6, choices, 9)[0] == [1, 2]
    assert forced_tokens(Spelled(b"name", TOKENS), 5, choices, 9)[0] == [5]
    assert forced_tokens(Spelled(b"namename", TOKENS), 5, Choices(TOKENS, frozenset({5})), 9)[
        0
    ] == [5]
    assert forced_tokens(Spelled(b"x", TOKENS), 5, choices, 9) == ([6], [1.0])


def test_how_sure_a_choice_is():
    """Learned from what is said, whether it was proposed or not; the only token is certain."""
    few = Spelled(b"name", TOKENS).few()
    choices = Choices(TOKENS)
    for _ in range(60):
        choices.observe(6, few, 5)
    assert choices.likely(6, few)[0] == 5
    assert choices.likely(6, few)[1] > 0.95
    assert choices.longest.value > 0.5  # once it was the longest, then the same again
    for token in (0, 1) * 60:
        choices.observe(6, few, token)
    assert choices.likely(6, few)[1] < 0.2
    assert choices.likely(6, np.array([6], dtype=np.int32)) == (6, 1.0)
    assert choices.likely(6, np.array([5, 6], dtype=np.int32)) is None
    assert choices.likely(6, few[:0]) is None


def test_as_many_as_pay():
    """Rows that cost a pass each pay for nothing but certainties; free ones, for all."""
    linear, free = np.arange(1.0, 9.0), np.ones(8)
    assert paying([0.9, 0.9], linear) == 0
    assert paying([1.0, 1.0], 2 * linear) == 2  # what cannot cost more is tried, and so measured
    assert paying([0.9, 0.1, 0.9], free) == 3
    steep = np.array([1.0, 1.7, 2.5, 2.6, 4.0, 6.0])
    assert paying([1.0, 1.0, 1.0, 0.5], steep) == 3
    assert paying([0.6, 1.0, 1.0, 1.0], steep) == 3  # 1.8 tokens for 1.6 passes
    assert paying([0.5, 1.0, 1.0, 1.0], steep) == 0  # 1.5 for 1.6
    assert paying([1.0, 1.0], steep, before=2) == 1  # the fourth row is cheap, the fifth is not
    assert paying([1.0, 1.0], steep, before=2, survival=0.05) == 0
    assert paying([1.0] * 9, free) == 7


def test_fitting_drafts():
    """Up to the first token that does not fit; a draft model says its best that does."""
    state = Spelled(b"name", TOKENS)
    assert allowed_prefix(state, [0, 6, 3]) == 1
    assert state.at == 1
    grammar = AnswerGrammar(Spelled(b"name", TOKENS), Choices(TOKENS))
    grammar.length = 2
    best = Constrained(Sampler(Sampling(temperature=0)), grammar)
    assert best.history([9, 9]) == ()
    row = np.array([0.1, 0.2, 0.5, 0.4, 0.3, 0.0, 9.0], dtype=np.float32)
    assert best(row, (), []).top == 1
    assert best(row, (), [1]).top == 2
    best.history([9, 9, 1])
    assert best(row, (), []).top == 2  # "na" was copied before
    best.history([9, 9, 6])
    assert best(row, (), []).top == 6  # a copy that does not fit: what follows is not verified


class Offers(Drafter):
    """Offers one draft."""

    name = "lookup"

    def __init__(self, *segments):
        self.draft = Draft(*segments)

    def propose(self, tokens, plan):
        return self.draft


def offered(text, *segments):
    """What is left of these segments where that text must follow, dictated tokens aside."""
    grammar = AnswerGrammar(Spelled(text, TOKENS), Choices(TOKENS))
    grammar.choices.likely = lambda last, few: None
    drafter = GrammarDrafter(Offers(*segments), grammar, None)
    return drafter.propose([9], Bounded(0, room=9))


def copies(guesses, count):
    return Segment.of_guesses("lookup", guesses, [2.0] * len(guesses), count)


def test_copies_are_learned_from_under_a_grammar_too():
    """Also those that nobody verified, or a bad stretch would end them for good."""

    def told(draft, emitted):
        return [(one.source, outcomes) for _, one, outcomes in draft.outcomes(emitted)]

    assert told(offered(b"name", copies([1, 2], 0)), (1,)) == [("lookup", (1.0,))]
    assert told(offered(b"name", copies([1, 2], 1)), (1, 3)) == [("lookup", (1.0, 0.0))]
    assert not offered(b"name", copies([6, 2], 0)).segments  # cannot follow
    cut = offered(b"name", copies([1, 6], 2), copies([2], 0))
    assert cut.tokens == (1,)
    assert told(cut, (1, 2)) == [("lookup", (1.0,))]  # the last one was guessed behind a 6
