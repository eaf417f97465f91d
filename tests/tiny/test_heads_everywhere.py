"""Drafts that go on from their target's states, wherever this package drafts: many conversations in
a pass, the drop-in, the commands.
"""

from __future__ import annotations

import json
import pickle

import llama_cpp
import pytest
from click.testing import CliRunner

from dspark_gguf import Batcher, DSparkLlama, Limits, Sampling, Speculation
from dspark_gguf.cli import main
from dspark_gguf.config import DraftOptions, ModelOptions
from dspark_gguf.engine.pair import Pair
from tests.crowd import EXACT, LEARNED, Alone, live, prompts, settings_of
from tests.tiny.test_heads import ANY, RIGHT, files, own, plain_and, sidecar
from tests.tiny_cycle import CYCLE
from tests.tiny_heads import Made, write_mtp

__all__ = ["files"]  # a fixture
ALWAYS = Speculation(mode="on", draft_min_prob=0.0, draft_max=3, learn=False)
PLAIN = Speculation(mode="off")
PROMPT = list(CYCLE[3:15])


def crowd_of(files, name, conversations, n_ctx=1024):
    target, draft = ANY[name](files)
    return Pair(
        target,
        draft,
        ModelOptions(n_ctx=n_ctx, **EXACT),
        DraftOptions(**EXACT),
        conversations=conversations,
    )


class OfTarget(Alone):
    """What each conversation says without any other and without a draft."""

    def __init__(self, files, name):
        target, _ = ANY[name](files)
        self.pair = Pair(target, None, ModelOptions(n_ctx=1024, **EXACT))
        self.known = {}


RIGHT_TOGETHER = ["hy_v3, copy", "qwen35, copy", "qwen3next, copy", "mimo2, 3 heads, copy",
                  "sidecar of a hybrid", "eagle3", "eagle3 of a hybrid", "assistant"]  # fmt: skip


@pytest.mark.parametrize("name", RIGHT_TOGETHER)
def test_several_conversations_are_as_right_as_one(files, name):
    """Each draft follows its own conversation in the passes that all share."""
    with crowd_of(files, name, 3) as pair:
        batcher = Batcher(pair, ALWAYS, parallel=3)
        texts = [[*CYCLE[k : k + 9 + k], *PROMPT[: 3 + k]] for k in range(5)]
        requests = [
            batcher.submit(prompt, Sampling(temperature=0, ignore_eos=True), Limits(max_tokens=40))
            for prompt in texts
        ]
        list(batcher)
        alone = OfTarget(files, name)
        for prompt, request in zip(texts, requests, strict=True):
            wanted = alone.says(prompt, Sampling(temperature=0, ignore_eos=True), 40)
            assert request.answer.tokens == wanted
            tally = request.answer.tally
            assert tally.drafted == tally.accepted > 0
        alone.pair.close()


@pytest.mark.parametrize(
    "name",
    ["hy_v3, copy", "qwen35, copy", "qwen3next, copy", "mimo2, 3 heads, copy",
     "eagle3 of a hybrid"],
)  # fmt: skip
def test_what_is_lent_of_a_prompt_has_the_states_of_the_draft_too(files, name):
    """Nothing of it is read again, and all guesses are right, as behind a text that was read."""
    greedy = Sampling(temperature=0, ignore_eos=True)
    begin, alone = [*CYCLE, *CYCLE, *CYCLE][:60], OfTarget(files, name)
    with crowd_of(files, name, 3) as pair:
        batcher = Batcher(pair, ALWAYS, parallel=3)
        texts = [[*begin, *CYCLE[k : k + 4]] for k in range(10, 14)]
        requests = [batcher.submit(prompt, greedy, Limits(max_tokens=20)) for prompt in texts]
        list(batcher)
        for prompt, request in zip(texts, requests, strict=True):
            assert request.answer.tokens == alone.says(prompt, greedy, 20)
            tally = request.answer.tally
            assert tally.drafted == tally.accepted > 0
        assert [each.answer.cached_tokens for each in requests] == [0, 60, 60, 60]
    alone.pair.close()


@pytest.mark.parametrize("how", [ALWAYS, LEARNED], ids=["fixed", "learned"])
@pytest.mark.parametrize(
    "name",
    ["random", "random hybrid", "random hybrid without snapshots", "random, 3 heads",
     "random eagle3", "attending assistant"],
)  # fmt: skip
def test_wrong_drafts_change_no_conversation(files, name, how):
    """Also sampled, and with edits of what a place holds."""
    alone = OfTarget(files, name)
    with crowd_of(files, name, 3) as pair:
        batcher = Batcher(pair, how, parallel=3)
        wanted = [
            (prompt, settings_of(k, 0.8 * (k % 2)), 10 + 5 * (k % 3))
            for k, prompt in enumerate(prompts(7))
        ]
        requests = [batcher.submit(one[0], one[1], Limits(max_tokens=one[2])) for one in wanted]
        list(batcher)
        for request, one in zip(requests, wanted, strict=True):
            assert request.answer.tokens == alone.says(*one)
    alone.pair.close()


@pytest.mark.parametrize("name", ["hy_v3, copy", "random hybrid", "random, 3 heads", "eagle3"])
def test_joins_leaves_cancels_and_full_cells(files, name):
    """A random life in a context that is too small for all."""
    alone = OfTarget(files, name)
    with crowd_of(files, name, 3, n_ctx=256) as pair:
        life = live(pair, alone, 120, how=ALWAYS)
    alone.pair.close()
    assert life.done > 5


LLAMA = {"n_ctx": 512, "flash_attn": False, "type_k": 0, "type_v": 0, "verbose": False}
DRAFT = DraftOptions(flash_attn="off", cache_type_k="f32", cache_type_v="f32")


@pytest.mark.parametrize(
    "name", ["hy_v3, copy", "qwen3next, copy", "mimo2, 3 heads, copy",
             "sidecar, target stripped", "eagle3", "assistant"],
)  # fmt: skip
def test_the_drop_in(files, name):
    """The same text as ``Llama``, greedy and with a seed, after an edit and from a pickle."""
    target, draft = RIGHT[name][0](files)
    plain_target, _ = RIGHT["qwen35, copy"][0](files) if "stripped" in name else (target, "")
    given = "mtp" if target == draft else draft
    llama = llama_cpp.Llama(str(plain_target), **LLAMA)
    made = DSparkLlama(
        str(target), draft_model=given, draft_options=DRAFT, speculation=ALWAYS, **LLAMA
    )
    ours = pickle.loads(pickle.dumps(made))
    made.close()
    bias = {260: -100.0, 262: -100.0}
    for prompt in (PROMPT, [*PROMPT[:6], 70, *PROMPT], PROMPT):
        for heat in (0.0, 0.8):
            said = [
                one.create_completion(
                    prompt, max_tokens=40, seed=5, temperature=heat, logit_bias=bias
                )["choices"][0]["text"]
                for one in (llama, ours)
            ]
            assert said[0] == said[1]
        if not heat:
            assert ours.tally.drafted == ours.tally.accepted
    assert ours.tally.accepted > 100
    ours.close()
    llama.close()


def test_the_drop_in_keeps_states(files):
    """A saved state does not have the draft's: what is missing is read again."""
    target, _ = own(files, Made())
    ours = DSparkLlama(str(target), draft="mtp", draft_options=DRAFT, speculation=ALWAYS, **LLAMA)
    greedy = {"max_tokens": 20, "temperature": 0.0}
    first = ours.create_completion(PROMPT, **greedy)["choices"][0]["text"]
    state = ours.save_state()
    ours.create_completion([1, 2, 3], **greedy)
    ours.load_state(state)
    assert ours.create_completion(PROMPT, **greedy)["choices"][0]["text"] == first
    assert ours.tally.drafted == ours.tally.accepted > 0
    ours.close()


def test_the_drop_in_loads_its_own_heads_once(files):
    """They are in the target's file, whose weights are not loaded again."""
    target, _ = own(files, Made())
    ours = DSparkLlama(str(target), draft="mtp", draft_options=DRAFT, speculation=ALWAYS, **LLAMA)
    assert ours._draft.model.pointer == ours._model.model
    ours.close()


def test_commands(tmp_path, monkeypatch):
    """`run`, `bench` and `chat` with -d mtp or a sidecar's file: the same text, drafts accepted."""
    from tests.tiny_heads import HEADS

    # A cycle's head is right in any conversation of letters of the cycle.
    path = write_mtp(tmp_path / "model.gguf", Made("qwen35", "cycle"))
    beside = write_mtp(tmp_path / "mtp-model.gguf", Made("qwen35", "cycle"), keep=HEADS)
    words = ["-m", str(path), "--temp", "0", "-n", "40", "-c", "512", "-fa", "off"]
    on = ["--spec", "on", "--draft-min-prob", "0", "--draft-max", "3", "--no-learn"]

    def run(*more):
        done = CliRunner().invoke(main, ["run", *words, *more, "--json", "ABCDEF"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    plain = run("--spec", "off")
    for draft in ("mtp", str(beside)):
        answer = run("-d", draft, *on)
        assert answer["text"] == plain["text"]
        assert answer["stats"]["accepted"] > 0
    done = CliRunner().invoke(
        main, ["chat", *words, "-d", "mtp", *on], input="ABCDEF\n/regen\nGHI\n/stats\n"
    )
    assert done.exit_code == 0, done.output
    assert done.output.count("40 tok") >= 3
    assert "accepted" in done.output
    done = CliRunner().invoke(main, ["run", "-m", str(beside), "x"])
    assert done.exit_code == 1
    assert "is a file of prediction heads alone" in done.output
    assert "Traceback" not in done.output


def test_methods_of_the_bench(files):
    """Each kind by its name; another kind's is refused."""
    from dspark_gguf.errors import UsageError
    from dspark_gguf.measure.bench.plan import default_methods, make_methods

    for kind in ("mtp", "eagle3"):
        assert kind in default_methods(kind)
        names = [method.name for method in make_methods(default_methods(kind), kind)]
        assert kind in names
    with pytest.raises(UsageError, match="'mtp' needs prediction heads"):
        make_methods(["mtp"], "eagle3")
    with Pair(*sidecar(files, Made()), ModelOptions(n_ctx=512, **EXACT)) as pair:
        speculation = make_methods(["mtp"], "mtp")[1].speculation
        plain, answer = plain_and(pair, Sampling(temperature=0), speculation)
        assert plain.tokens == answer.tokens


@pytest.mark.parametrize("name", ["hy_v3, copy", "mimo2, 3 heads, copy", "eagle3", "assistant"])
def test_a_common_beginning_is_read_once(files, name):
    """Also by the draft: it is as right as if it had read that itself."""
    common = [*CYCLE, *CYCLE]
    greedy = Sampling(temperature=0, ignore_eos=True)
    with crowd_of(files, name, 3) as pair:
        batcher = Batcher(pair, ALWAYS, parallel=3)
        first = batcher.submit([*common, *PROMPT], greedy, Limits(max_tokens=40))
        for _ in range(4):
            batcher.step()
        rest = [
            batcher.submit([*common, *PROMPT[k:]], greedy, Limits(max_tokens=30)) for k in (1, 2)
        ]
        list(batcher)
        assert all(each.answer.cached_tokens >= len(common) - 1 for each in rest)
        for each in (first, *rest):
            tally = each.answer.tally
            assert tally.drafted == tally.accepted > 0
