"""Grammars: what may follow, what is proposed without a draft, and that draws stay llama.cpp's."""

import json

import llama_cpp
import numpy as np
import pytest

from dspark_gguf import Speculation
from dspark_gguf.assemble import new_choices
from dspark_gguf.draft.answer_grammar import AnswerGrammar
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
        assert grammar.allows(token)
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


def test_nothing_may_follow(pair, monkeypatch):
    """A clear refusal instead of the end of the process."""
    _, ours = pair
    monkeypatch.setattr(Grammar, "all", lambda self: np.empty(0, dtype=np.int32))
    monkeypatch.setattr(Grammar, "among", lambda self, ids: np.empty(0, dtype=np.int32))
    with pytest.raises(UsageError, match="allows no token"):
        ours.create_completion(
            "a", temperature=0.0, grammar=llama_cpp.LlamaGrammar.from_string(GBNF, verbose=False)
        )
