"""`DSparkLlama` beside `Llama`: the same tokens, for every way of drawing them."""

import json

import llama_cpp
import numpy as np
import pytest

from dspark_gguf import Speculation
from dspark_gguf.config import DraftOptions
from dspark_gguf.dropin.llama import DSparkLlama
from dspark_gguf.errors import UsageError

EXACT = {
    "n_ctx": 512, "flash_attn": False, "type_k": 0, "type_v": 0, "verbose": False, "seed": 7,
}  # fmt: skip
DRAFT = DraftOptions(n_ctx=512, flash_attn="off", cache_type_k="f32", cache_type_v="f32")
PROMPT = [1, 2, 3, 4, 1, 2, 3]
ALWAYS = Speculation(mode="on", draft_min_prob=0.0, draft_max=5)


@pytest.fixture(scope="module")
def plain(tiny_files):
    """The original."""
    with_it = llama_cpp.Llama(str(tiny_files.target), **EXACT)
    yield with_it
    with_it.close()


@pytest.fixture(scope="module", params=["lookup", "model", "llama", "cascade"])
def ours(tiny_files, request):
    """The drop-in, with each drafter."""
    draft = None if request.param == "lookup" else tiny_files.draft
    if request.param == "llama":
        draft = llama_cpp.Llama(str(draft), **EXACT)
    speculation = Speculation() if request.param == "cascade" else ALWAYS
    how = {"draft_options": DRAFT} if request.param in ("model", "cascade") else {}
    made = DSparkLlama(
        str(tiny_files.target), draft_model=draft, speculation=speculation, **how, **EXACT
    )
    yield made
    made.close()


def said(llama, count=60, prompt=PROMPT, **options):
    llama.set_seed(7)
    tokens = []
    for token in llama.generate(list(prompt), **options):
        tokens.append(token)
        if len(tokens) == count:
            break
    return tokens


WAYS = {
    "greedy": {"temp": 0.0},
    "sampled": {"temp": 0.9},
    "everything": {"temp": 1.2, "top_k": 7, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.9},
    "penalties": {"temp": 0.7, "repeat_penalty": 1.3, "frequency_penalty": 0.3},
    "mirostat": {"temp": 0.8, "mirostat_mode": 1},
    "mirostat 2": {"temp": 0.8, "mirostat_mode": 2},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_tokens_as_llama(plain, ours, way):
    """One draw of the same chain for each token, in order: the same seed says the same."""
    assert said(ours, **WAYS[way]) == said(plain, **WAYS[way])


def test_processors_and_criteria_see_what_they_saw(plain, ours):
    """Token ids up to the place, whatever lies behind them in the batch."""
    seen = {}
    for name, llama in (("plain", plain), ("ours", ours)):
        ids = seen[name] = []

        def note(input_ids, scores, ids=ids):
            ids.append(input_ids.tolist())
            return scores

        def enough(input_ids, logits):
            return len(input_ids) >= 40

        processors = llama_cpp.LogitsProcessorList([note])
        criteria = llama_cpp.StoppingCriteriaList([enough])
        seen[name + " said"] = said(
            llama, temp=0.0, logits_processor=processors, stopping_criteria=criteria
        )
    assert seen["plain said"] == seen["ours said"]
    assert seen["plain"] == seen["ours"]


@pytest.mark.parametrize("asked", [{}, {"stream": True}, {"logprobs": 1}, {"echo": True}])
def test_a_criterion_ends_an_answer_anywhere(plain, ours, asked):
    """After rejected and accepted drafts alike: the text is there, and the reason is `stop`."""
    for count in range(len(PROMPT), len(PROMPT) + 20):
        criteria = llama_cpp.StoppingCriteriaList([lambda ids, _: len(ids) >= count])  # noqa: B023
        told = []
        for llama in (plain, ours):
            asked_of = asked if llama is ours or "logprobs" not in asked else {}
            out = llama.create_completion(
                PROMPT if "echo" not in asked else "abc abc", max_tokens=40, temperature=0.0,
                stopping_criteria=criteria, **asked_of,
            )  # fmt: skip
            choices = [each["choices"][0] for each in (out if asked.get("stream") else [out])]
            told.append([(each["text"], each["finish_reason"]) for each in choices])
        assert told[0] == told[1]
        assert told[1][-1][1] == "stop"


def test_an_abandoned_generator_leaves_true_books(plain, ours):
    """After any number of tokens, the next answer is that of a new model."""
    for count in (1, 2, 3, 5, 8):
        said(ours, count, temp=0.0)
        said(plain, count, temp=0.0)
        assert said(ours, 20, [*PROMPT, 5, 6], temp=0.0) == said(
            plain, 20, [*PROMPT, 5, 6], temp=0.0
        )


def test_tokens_that_the_caller_sends_are_read(plain, ours):
    """They stand behind the token just said. (`Llama` itself ends the process here.)"""
    tokens = ours.generate(list(PROMPT), temp=0.0)
    first = [next(tokens), next(tokens)]
    rest = [tokens.send([9, 10]), next(tokens), next(tokens), next(tokens)]
    assert rest == said(plain, 4, [*PROMPT, *first, 9, 10], temp=0.0)


def test_saved_state(plain, ours):
    """A state goes on where it was saved."""
    for llama in (plain, ours):
        said(llama, 9, temp=0.0)
    state = ours.save_state()
    after = said(ours, 20, [*PROMPT, 3], temp=0.0)
    said(ours, 30, [5, 6, 7, 8], temp=0.0)
    ours.load_state(state)
    assert (
        said(ours, 20, [*PROMPT, 3], temp=0.0) == after == said(plain, 20, [*PROMPT, 3], temp=0.0)
    )


def test_completions_and_streams(plain, ours):
    """The dictionaries of `create_completion`, but for id, time and file name."""
    for stream in (False, True):
        texts = []
        for llama in (plain, ours):
            out = llama.create_completion(
                "abc abd abc", max_tokens=24, temperature=0.0, stream=stream
            )
            parts = list(out) if stream else [out]
            texts.append(json.dumps([part["choices"] for part in parts]))
        assert texts[0] == texts[1]


COMPLETIONS = {
    "echo": {"echo": True},
    "suffix and echo": {"echo": True, "suffix": "!"},
    "stop": {"stop": ["e", "q"]},
    "long stop": {"stop": ["xyzzy", "th", "a b"]},
    "bias": {"logit_bias": {"7": 4.0, "9": -100.0}, "temperature": 0.9},
    "seed": {"seed": 11, "temperature": 1.1},
    "typical": {"typical_p": 0.5, "temperature": 1.0},
    "presence": {"presence_penalty": 0.6, "frequency_penalty": 0.2, "temperature": 0.8},
    "nothing": {"max_tokens": 0, "echo": True},
    "until full": {"max_tokens": None},
}


@pytest.mark.parametrize("way", COMPLETIONS)
def test_options_of_completions(plain, ours, way):
    """Each option of `create_completion`, whole and streamed."""
    asked = {"max_tokens": 32, "temperature": 0.0, "seed": 5, **COMPLETIONS[way]}
    # (`Llama` itself cannot echo a list.)
    for prompt in ("abc abd abc", *([] if "echo" in asked else [[1, 2, 3, 4, 1, 2]])):
        wanted = plain.create_completion(prompt, **asked)
        got = ours.create_completion(prompt, **asked)
        assert (got["choices"], got["usage"]) == (wanted["choices"], wanted["usage"])
        streams = [
            [part["choices"] for part in each.create_completion(prompt, stream=True, **asked)]
            for each in (plain, ours)
        ]
        assert streams[0] == streams[1]


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_caches_of_states(tiny_files, kind, tmp_path):
    """A cache of states set on it: what it says is the same, and what one saves the other loads."""
    answers = []
    for number, made in enumerate((llama_cpp.Llama, DSparkLlama)):
        llama = made(str(tiny_files.target), **EXACT)
        kept = (
            llama_cpp.LlamaRAMCache()
            if kind == "ram"
            else llama_cpp.LlamaDiskCache(str(tmp_path / str(number)))
        )
        llama.set_cache(kept)
        texts = [
            llama.create_completion(prompt, max_tokens=16, temperature=0.0)["choices"][0]["text"]
            for prompt in ("abc abd", "xyz", "abc abd abc", "abc abd")
        ]
        assert kept.cache_size > 0
        answers.append(texts)
        llama.close()
    assert answers[0] == answers[1]


def close(one, other):
    """Whether log-probabilities tell the same."""
    if one is None or other is None:
        return one is other
    tops = [[list(each.values()) for each in some["top_logprobs"]] for some in (one, other)]
    same = all(
        np.allclose(mine, theirs, atol=1e-5) for mine, theirs in zip(*tops, strict=True)
    ) and np.allclose(one["token_logprobs"], other["token_logprobs"], atol=1e-5)
    return same and all(one[key] == other[key] for key in ("tokens", "text_offset"))


def test_logprobs_without_a_table(tiny_files, ours):
    """The same as of a ``Llama`` that keeps the logits of the whole context; echo is refused."""
    keeps = llama_cpp.Llama(str(tiny_files.target), **EXACT, logits_all=True)
    before = ours.scores.tobytes()
    for way in ({"temperature": 0.0}, {"temperature": 0.9}):
        found = []
        for llama in (keeps, ours):
            options = {"max_tokens": 24, "logprobs": 3, "seed": 5, **way}
            whole = llama.create_completion("abc abc", **options)["choices"][0]["logprobs"]
            parts = list(llama.create_completion("abc abc", stream=True, **options))
            found.append((whole, [part["choices"][0]["logprobs"] for part in parts]))
        (theirs, their_parts), (mine, my_parts) = found
        assert close(theirs, mine)  # their table is summed in another order: the last bit differs
        assert len(their_parts) == len(my_parts)
        assert all(map(close, their_parts, my_parts))
    keeps.close()
    assert ours._recorded is None
    assert ours.scores.tobytes() == before  # not written to
    with pytest.raises(UsageError, match="echo"):
        ours.create_completion("abc", logprobs=1, echo=True)
    ours.create_completion("abc", max_tokens=2)


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


def test_grammars(plain, ours):
    """A JSON schema under speculation: the same text, and valid."""
    texts = []
    for llama in (plain, ours):
        grammar = llama_cpp.LlamaGrammar.from_json_schema(json.dumps(SCHEMA), verbose=False)
        llama.set_seed(7)
        out = llama.create_completion("abc", max_tokens=200, temperature=0.8, grammar=grammar)
        texts.append(out["choices"][0]["text"])
    assert texts[0] == texts[1]
    # llama.cpp lets control characters into strings, which a model of noise says.
    assert json.loads(texts[1], strict=False).keys() == {"name", "age"}


CHAT = [{"role": "user", "content": "Anna is 31 years old. Who is it, and how old?"}]


def test_chats(plain, ours):
    """The dictionaries of `create_chat_completion`, whole and in parts: what `Llama` says."""
    asked = {"messages": CHAT, "max_tokens": 24, "temperature": 0.0}
    for stream in (False, True):
        said = []
        for llama in (plain, ours):
            out = llama.create_chat_completion(**asked, stream=stream)
            said.append([part["choices"] for part in (out if stream else [out])])
        assert said[0] == said[1] != []
