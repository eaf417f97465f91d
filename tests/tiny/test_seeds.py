"""A seed fixes every answer of a conversation, however it was drafted."""

from __future__ import annotations

import json

import llama_cpp
import pytest

from dspark_gguf import Decoder, Speculation
from dspark_gguf.chat import answers, transcript
from dspark_gguf.chat.jobs import Job
from dspark_gguf.chat.session import Session
from dspark_gguf.config import DraftOptions, ModelOptions
from dspark_gguf.dropin.llama import DSparkLlama
from dspark_gguf.engine.pair import Pair
from dspark_gguf.errors import ResourceError
from dspark_gguf.learned_costs import LearnedCosts
from dspark_gguf.settings_files import load_settings
from tests.tiny_dflash import write_dflash
from tests.tiny_gguf import EOS, IM_END

#: Caches that hold numbers as they were computed, so that the order of passes changes nothing.
EXACT = {
    "n_ctx": 256, "flash_attn": "off", "cache_type_k": "f32", "cache_type_v": "f32", "threads": 1,
}  # fmt: skip
BY_HAND = {"mode": "on", "draft_min_prob": 0.0, "draft_max": 5}
WAYS = {
    "off": {"mode": "off"},
    "lookup": {**BY_HAND, "drafter": "lookup"},
    "model": {**BY_HAND, "drafter": "model"},
    "cascade": {"learn": False},
}


def settings_for(way, seed, **sampling):
    # End tokens and stop strings are likely: many answers end inside a draft.
    tree = {
        "sampling": {"seed": seed, "logit_bias": {EOS: 2.0, IM_END: 3.0}, **sampling},
        "limits": {"max_tokens": 30, "stop": ["e", "3", "x"]},
        "speculation": WAYS[way],
        "chat": {"context_shift": True},
    }
    return load_settings(None, tree)


class Steady(LearnedCosts):
    """Rows and looks are nearly free: the cascade drafts, however busy this machine is."""

    def __init__(self):
        super().__init__()
        for rows in (1, self.limit + 1):
            self.add_pass(rows, 1.0)
        self.add_first_draft_step(0.001, 1)
        self.add_draft_step(0.001)
        self.profiled = self.limit

    def observe(self, round):
        pass


@pytest.fixture(scope="module")
def pair(tiny_files):
    with Pair(
        tiny_files.target, tiny_files.draft, ModelOptions(**EXACT), DraftOptions(**EXACT)
    ) as loaded:
        loaded.learned(Speculation(learn=False)).costs = Steady()
        yield loaded


def listen(rounds):
    return [token for round in rounds for token in round.tokens]


def cancelled(session, rounds, after):
    """Stop listening after so many rounds with tokens: none: before the prompt is read."""
    if after == 0:
        session.pair.interrupt.set()
        listen(rounds)
        session.pair.interrupt.clear()
    else:
        next(rounds)
        rounds.close()


def turns(session):
    """Everything that a chat can do, part by part; what was said after each."""

    def refused():
        with pytest.raises(ResourceError):
            listen(session.ask("too long " * 60))

    parts = [
        lambda: listen(session.ask("aaa bbb aaa")),
        lambda: listen(session.ask("ccc aaa bbb")),
        lambda: listen(session.reply()),
        lambda: cancelled(session, session.ask("never heard"), 0),
        lambda: listen(session.edit("ccc ccc")),
        refused,
        lambda: cancelled(session, session.edit("not this"), 1),
        lambda: listen(session.ask("ddd aaa")),
        session.undo,
        lambda: listen(session.ask("ddd bbb")),
        lambda: session.update({"sampling": {"top_k": 20}}),
        lambda: listen(session.ask("eee aaa bbb")),
        lambda: session.update({"sampling": {"seed": 9}}),
        *[lambda: listen(session.ask("fff aaa"))] * 4,
    ]
    for part in parts:
        part()
        yield json.dumps(session.messages)


def conversation(pair, way, seed, **sampling):
    """What was said after each part of it, and how much of it was drafted."""
    for cache in pair.caches.values():
        cache.trim(0)
    session = Session(pair, settings_for(way, seed, **sampling))
    return list(turns(session)), session


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 5])
def test_conversations(pair, seed):
    """With any draft: the same after every turn, though drafts go on behind an answer's end."""
    wanted, plain = conversation(pair, "off", seed)
    assert plain.forgotten > 0
    assert plain.total.drafted == 0
    assert len(set(wanted)) > 8
    for way in ("lookup", "model", "cascade"):
        said, session = conversation(pair, way, seed)
        assert said == wanted, way
        assert session.total.drafted > 0


def test_a_seed_that_was_drawn_is_shown_and_says_the_same_again(pair):
    """Each session without a seed has one of its own; drafts or not."""
    first, other = (Session(pair, settings_for("model", None)) for _ in range(2))
    said = [listen(first.ask(text)) for text in ("aaa bbb", "ccc")]
    assert other.seed != first.seed
    again = Session(pair, settings_for("off", first.summary.seed))
    assert [listen(again.ask(text)) for text in ("aaa bbb", "ccc")] == said
    again.update({"sampling": {"seed": None}})
    assert again.seed != first.seed


def test_with_a_block_draft(tiny_files, tmp_path):
    """Its guesses come from one pass."""
    draft = write_dflash(tmp_path / "block.gguf")
    with Pair(tiny_files.target, draft, ModelOptions(**EXACT), DraftOptions(**EXACT)) as pair:
        (wanted, _), (said, session) = (conversation(pair, way, 3) for way in ("off", "model"))
        assert said == wanted
        assert session.total.drafted > 0


def test_greedy_conversations_need_no_seed(pair):
    """Nothing is drawn."""
    wanted, _ = conversation(pair, "off", None, temperature=0.0)
    assert conversation(pair, "cascade", None, temperature=0.0)[0] == wanted


def test_answers_differ(pair):
    """The same question again gets an answer of its own; `/set seed` begins again."""
    session = Session(pair, settings_for("off", 5))
    first = listen(session.ask("aaa"))
    again = [listen(session.reply()) for _ in range(3)]
    assert len({tuple(tokens) for tokens in (first, *again)}) == 4
    session.update({"sampling": {"seed": 5}})
    assert listen(session.reply()) == first
    session.reset()
    assert listen(session.ask("aaa")) == first
    prompt = session.last_exchange[1][: session.last.prompt_tokens]
    decoder = Decoder.for_pair(pair, session.settings.sampling)
    for _ in range(2):  # an answer alone has the draws of a conversation's first one
        assert decoder.answer(prompt, session.settings.limits).tokens == first


def test_a_kept_conversation_goes_on_as_if_it_had_not_been_left(pair, tmp_path):
    """The number of its answers is kept with it; other files tell it by their messages."""

    def ask(session, *texts):
        return [listen(session.ask(text)) for text in texts]

    whole = Session(pair, settings_for("off", 4))
    ask(whole, "aaa")
    listen(whole.reply())
    transcript.write(transcript.record(whole), tmp_path / "chat.json")
    trail = whole.last_exchange
    wanted = ask(whole, "bbb", "ccc")
    for way in ("off", "model"):
        again = Session(pair, settings_for(way, 4))
        transcript.load(again, tmp_path / "chat.json")
        again.last_exchange = trail
        assert ask(again, "bbb", "ccc") == wanted
    values = json.loads((tmp_path / "chat.json").read_text())
    for damage in ({}, {"answers": "x"}, {"answers": -1}):
        plain = {key: value for key, value in values.items() if key != "answers"} | damage
        (tmp_path / "other.json").write_text(json.dumps(plain))
        transcript.load(again, tmp_path / "other.json")
        assert again.answers == 1


def test_jobs(pair):
    """The text of a job depends on the seed and on its own input, not on its neighbours."""
    talk = [{"role": "user", "content": "aaa"}, {"role": "assistant", "content": "bbb"}]
    inputs = [
        {"prompt": "aaa bbb aaa"},
        {"messages": [*talk, {"role": "user", "content": "aaa bbb"}]},
        {"prompt": "ccc"},
    ]

    def answered(way, order):
        jobs = [Job(k, inputs[k]) for k in order]
        outcomes = answers.answer_all(pair, settings_for(way, 6), jobs)
        return {job.index: outcome["text"] for job, outcome in outcomes}

    wanted = answered("off", [0, 1, 2])
    assert answered("off", [2, 0, 1]) == wanted
    for way in ("lookup", "model", "cascade"):
        assert answered(way, [1, 2, 0]) == wanted


@pytest.mark.parametrize("drafts", [True, False])
def test_the_drop_in_over_several_calls(tiny_files, drafts):
    """`Llama` draws a new seed for each call from its own: so does `DSparkLlama`."""
    options = {
        "n_ctx": 512, "flash_attn": False, "type_k": 0, "type_v": 0, "verbose": False, "seed": 7,
    }  # fmt: skip
    texts = []
    for made in (llama_cpp.Llama, DSparkLlama.with_draft(tiny_files.draft if drafts else None)):
        llama = made(str(tiny_files.target), **options)
        texts.append([
            llama.create_completion(
                prompt, max_tokens=30, temperature=0.9, stop=["e", "3"], logit_bias={IM_END: 3.0}
            )["choices"][0]["text"]
            for prompt in ("abc abd abc", "abc abd abc", "xyz xyz", "abc abd abc abd") * 2
        ])  # fmt: skip
        llama.close()
    assert texts[0] == texts[1]
