"""Grammars: what may follow, what is proposed without a draft, and that draws stay llama.cpp's."""

from __future__ import annotations

import json

import llama_cpp
import numpy as np
import pytest

from dspark_gguf import Speculation
from dspark_gguf.assemble import new_choices
from dspark_gguf.draft.answer_grammar import AnswerGrammar, Choices, FittingGreedy, fitting
from dspark_gguf.draft.grammar import forced, paying
from dspark_gguf.dropin.llama import DSparkLlama
from dspark_gguf.engine.chain import Chain
from dspark_gguf.engine.grammar import Grammar
from dspark_gguf.engine.llama import SafeLlama
from dspark_gguf.errors import UsageError
from dspark_gguf.records import NO_DRAFT

SCHEMA = {
    "type": "object",
    "properties": {
        "first_name": {"type": "string", "maxLength": 12},
        "occupation": {"enum": ["baker", "teacher"]},
        "age_in_years": {"type": "integer"},
    },
    "required": ["first_name", "occupation", "age_in_years"],
}
GBNF = llama_cpp.LlamaGrammar.from_json_schema(json.dumps(SCHEMA), verbose=False)._grammar
TEXTS = ["", "{", '{"', '{"fir', '{"first_name"', '{"first_name": "é', '{"first_name":"A", ']


@pytest.fixture(scope="module")
def pair(demo_files):
    """The original, and the drop-in with a draft, on the real pair."""
    options = {"n_ctx": 512, "verbose": False, "seed": 7}
    plain = SafeLlama(str(demo_files[0]), **options)
    ours = DSparkLlama(
        str(demo_files[0]), draft_model=demo_files[1],
        speculation=Speculation(mode="on", draft_min_prob=0.0, draft_max=4), **options,
    )  # fmt: skip
    yield plain, ours
    plain.close()
    ours.close()


@pytest.mark.parametrize("text", TEXTS)
def test_all_that_may_follow(pair, text):
    """By first bytes the same tokens are found as by asking about each."""
    plain, ours = pair
    grammar = Grammar(ours._vocabulary, GBNF)
    for token in plain.tokenize(text.encode(), add_bos=False):
        assert grammar.fits(token)
        grammar.accept(token)
    each = grammar.among(np.arange(plain.n_vocab(), dtype=np.int32))
    assert sorted(grammar.all()) == sorted(each)
    few = grammar.few()
    assert not len(few) or sorted(few) == sorted(each)
    twin = grammar.fork()
    twin.accept(int(each[0]))
    assert sorted(grammar.all()) == sorted(each)  # a fork is its own


def test_a_grammar_that_names_tokens(pair):
    """Its rules are not about bytes: every token is asked about."""
    plain, ours = pair
    grammar = Grammar(ours._vocabulary, 'root ::= "<" [a-z]+ ">"')
    each = grammar.among(np.arange(plain.n_vocab(), dtype=np.int32))
    assert sorted(grammar.all()) == sorted(each)
    with pytest.raises(UsageError, match="cannot parse"):
        Grammar(ours._vocabulary, "root ::= nothing")


WAYS = [
    {"temp": 0.0},
    {"temp": 0.9},
    {"temp": 0.7, "top_k": 5, "min_p": 0.0, "top_p": 1.0},
    {"temp": 0.7, "top_k": 0},
    {"temp": 0.0, "repeat_penalty": 1.3},
    {"temp": 0.8, "frequency_penalty": 0.5},
    {"temp": 0.8, "mirostat_mode": 2},
    {"temp": -1.0},
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: " ".join(f"{k}={v}" for k, v in way.items()))
def test_the_draws_of_the_chain(pair, way):
    """Shown few tokens or all, the chain draws the same from the same rows."""
    plain, ours = pair
    grammar = llama_cpp.LlamaGrammar.from_string(GBNF, verbose=False)
    plain.set_seed(5)
    tokens = plain.tokenize(b"Anna is 31 and bakes. As JSON: ")
    theirs = plain._init_sampler(grammar=grammar, **way)
    answer = AnswerGrammar(Grammar(ours._vocabulary, GBNF), new_choices(ours._vocabulary))
    chain = Chain(plain, answer, grammar=grammar, **way)
    plain.reset()
    plain.eval(tokens)
    for _ in range(50):
        drawn = theirs.sample(plain._ctx, -1)
        row = llama_cpp.llama_get_logits_ith(plain._ctx.ctx, -1)
        row = np.ctypeslib.as_array(row, (plain.n_vocab(),))
        assert chain.draw(row, -1) == drawn
        answer.follow(tokens[-1], drawn)
        if drawn in ours._vocabulary.end_tokens:
            break
        plain.eval([drawn])


def test_forced_tokens_save_passes(pair, monkeypatch):
    """A key is one pass, not one for each of its tokens; the second time, all of the structure."""
    _, ours = pair
    monkeypatch.setattr(ours.drafter, "propose", lambda tokens, plan: NO_DRAFT)
    monkeypatch.setitem(ours.__dict__, "_choices", new_choices(ours._vocabulary))
    passes = []
    decode = ours._cache.decode
    monkeypatch.setattr(ours._cache, "decode", lambda *step: (passes.append(1), decode(*step))[1])

    def asked():
        passes.clear()
        out = ours.create_completion(
            "Anna is 31 and bakes. As JSON: ", max_tokens=60, temperature=0.0,
            grammar=llama_cpp.LlamaGrammar.from_string(GBNF, verbose=False),
        )  # fmt: skip
        assert json.loads(out["choices"][0]["text"])
        return out["usage"]["completion_tokens"], len(passes)

    (tokens, first), (again, second) = asked(), asked()
    assert first < 0.8 * tokens
    assert second / again < first / tokens


class Spelled:
    """A grammar that lets one text pass, in any tokens."""

    def __init__(self, text, tokens, at=0):
        self.text, self.tokens, self.at = text, tokens, at

    def fork(self):
        return Spelled(self.text, self.tokens, self.at)

    def fits(self, token):
        piece = self.tokens[token]
        return bool(piece) and self.text.startswith(piece, self.at)

    def accept(self, token):
        assert self.fits(token)
        self.at += len(self.tokens[token])

    def among(self, ids):
        return np.array([token for token in ids if self.fits(token)], dtype=np.int32)

    def few(self):
        return self.among(range(len(self.tokens)))


TOKENS = [b"n", b"na", b"me", b"m", b"e", b"name", b"x"]


def test_forced():
    """The longest token, unless another was taken there before; never more than asked."""
    choices = Choices(TOKENS)
    assert forced(Spelled(b"namename", TOKENS), 6, choices, 9) == ([5, 5], [0.5, 0.5])
    assert forced(Spelled(b"namename", TOKENS), 6, choices, 1)[0] == [5]
    choices.observe(6, Spelled(b"name", TOKENS).few(), 1)
    assert forced(Spelled(b"name", TOKENS), 6, choices, 9)[0] == [1, 2]
    assert forced(Spelled(b"name", TOKENS), 5, choices, 9)[0] == [5]
    assert forced(Spelled(b"namename", TOKENS), 5, Choices(TOKENS, frozenset({5})), 9)[0] == [5]
    assert forced(Spelled(b"x", TOKENS), 5, choices, 9) == ([6], [1.0])


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
    assert fitting(state, [0, 6, 3]) == 1
    assert state.at == 1
    grammar = AnswerGrammar(Spelled(b"name", TOKENS), Choices(TOKENS))
    grammar.length = 2
    best = FittingGreedy(grammar)
    assert best.history([9, 9]) == ()
    row = np.array([0.1, 0.2, 0.5, 0.4, 0.3, 0.0, 9.0], dtype=np.float32)
    assert best(row, (), []).top == 1
    assert best(row, (), [1]).top == 2
    best.history([9, 9, 1])
    assert best(row, (), []).top == 2  # "na" was copied before
    best.history([9, 9, 6])
    assert best(row, (), []).top == 6  # a copy that does not fit: what follows is not verified


def test_nothing_may_follow(pair, monkeypatch):
    """A clear refusal instead of the end of the process."""
    _, ours = pair
    monkeypatch.setattr(Grammar, "all", lambda self: np.empty(0, dtype=np.int32))
    monkeypatch.setattr(Grammar, "among", lambda self, ids: np.empty(0, dtype=np.int32))
    with pytest.raises(UsageError, match="allows no token"):
        ours.create_completion(
            "a", temperature=0.0, grammar=llama_cpp.LlamaGrammar.from_string(GBNF, verbose=False)
        )
