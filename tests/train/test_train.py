"""The whole way, on tiny targets: conversations, recordings, training, the file, and serving it."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from dspark_gguf import Decoder, Limits, ModelOptions, Sampling, Speculation, load_pair
from dspark_gguf.chat.progress import counting
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.errors import PairError, UsageError
from dspark_gguf.train import generate, learn
from dspark_gguf.train import run as run_module
from dspark_gguf.train.plan import Job
from dspark_gguf.train.recipe import Recipe
from dspark_gguf.train.run import Training
from dspark_gguf.train.shape import TRIED
from dspark_gguf.train.work import Work
from tests.tiny_gguf import write_llama, write_mamba
from tests.train.targets import WRITERS, write_rule

GREEDY = Sampling(temperature=0)
ALWAYS = Speculation(mode="on", draft_min_prob=0.0, draft_max=16)
QUICK = Recipe(anchors=128, each=32, steps=90, every=30, warm=5, dropout=0.0)


@pytest.fixture
def job(cycle_target, tmp_path, monkeypatch):
    """Makes a job in a folder of its own; the cycle needs few tokens."""
    for module in (generate, run_module):
        monkeypatch.setattr(module, "SEQUENCES", 4)
    prompts = tmp_path / "prompts.jsonl"
    texts = [f"hello {word}" for word in ("one", "two", "three", "four", "five", "six", "seven")]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))

    def make(**changes):
        values = {
            "target": cycle_target, "output": tmp_path / "draft.gguf", "work": tmp_path / "work",
            "hours": 1.0, "prompts": prompts, "disk": 1.0, "max_tokens": 1500,
        }  # fmt: skip
        return Job(**(values | changes))

    return make


def run(job, recipe=QUICK):
    lines = []
    values = Training(job, ModelOptions(), lines.append, recipe).run()
    return values, lines


@pytest.mark.parametrize("changes", [{}, {"prompts": None}, {"disk": 0.0}, {"type": "q8_0"}],
                         ids=["given prompts", "own prompts", "on line", "q8_0"])  # fmt: skip
def test_from_a_target_to_a_draft(changes, job, cycle_target):
    """A rule without doubt: the draft knows it, and what is served is what was trained."""
    wanted = job(**changes)
    values, lines = run(wanted)
    assert values["served"]["tokens_a_pass"] > 5.0
    assert values["served"]["equal_first_guesses"] == 1.0
    assert values["held_out"]["tokens_a_pass"] > 5.0
    assert "time: 1 h" in lines[0]
    assert "memory:" in lines[0]
    with load_pair(cycle_target, wanted.output) as pair:
        # The scheduler begins with what the draft's scores meant when it was served.
        known = pair.learned(Speculation(learn=False)).calibration("block", "match", 0.0)
        assert known.tested > 50.0
        assert known.confidence[np.argmax(known.start)] > 0.9
        prompt = pair.template.encode([{"role": "user", "content": "hello you"}])
        answer = Decoder.for_pair(pair, GREEDY, ALWAYS).answer(prompt, Limits(max_tokens=60))
    # Texts of its own lead through another part of the way.
    assert answer.tally.tokens_per_round > (2.0 if wanted.prompts is None else 5.0)


@pytest.mark.parametrize("architecture", [name for name in TRIED if name != "llama"])
def test_every_architecture_that_is_claimed(architecture, job, tmp_path):
    """From its own target to six tokens a pass; llama is every other test's."""
    target = write_rule(tmp_path / f"{architecture}.gguf", architecture)
    values, _ = run(job(target=target, max_tokens=1000))
    assert values["served"]["tokens_a_pass"] > 5.0
    assert values["served"]["equal_first_guesses"] == 1.0


def test_there_is_a_target_of_each():
    """Whoever claims another architecture writes its target."""
    assert set(TRIED) == set(WRITERS)


def watch(monkeypatch, then):
    """Whenever progress is shown, do that with its title as well."""

    @contextmanager
    def watched(total, title, say):
        with counting(total, title=title, say=say) as show:
            yield lambda done, text: (show(done, text), then(title))

    for module in (run_module, learn):
        monkeypatch.setattr(module, "counting", watched)


def test_goes_on_where_it_stopped(job, monkeypatch):
    """Ctrl-C in any step: what is there stays, and the next run does the rest."""
    wanted = job()
    stops = {"conversations": 230, "training": 40}

    def stop_once(title):
        left = stops.get(title)
        if left is not None:
            stops[title] = left - 1
            if left == 1:
                del stops[title]
                raise KeyboardInterrupt

    watch(monkeypatch, stop_once)
    seen = []
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(wanted)
        found = np.fromfile(wanted.work / "recorded/lengths.u32", np.uint32)
        manifest = json.loads((wanted.work / "manifest.json").read_text())
        seen.append((len(found), manifest["spent"]))
    assert not stops
    (recorded, first), (_, second) = seen
    # Written and recorded in turns; what was being written when it stopped is kept as well.
    assert recorded > 0
    assert len(Work(wanted.work, manifest["identity"]).conversations) > recorded
    assert "training" not in first
    assert second["training"] > 0
    values, _ = run(wanted)
    assert values["served"]["tokens_a_pass"] > 5.0
    size = sum(len(each.prompt) + len(each.answer) for each in Work(
        wanted.work, values["identity"]).conversations)  # fmt: skip
    assert size >= 1500


def test_goes_on_from_a_draft(job, tmp_path):
    """`--from`: it knows the rule before the first step."""
    first = job()
    run(first)
    again = job(start=first.output, output=tmp_path / "again.gguf", work=tmp_path / "again")
    values, _ = run(again, Recipe(steps=1, each=16, anchors=32, rate=0.0, head_rate=0.0))
    assert values["served"]["tokens_a_pass"] > 5.0


def test_a_bounded_disk(job):
    """Recordings stay within what was allowed; conversations are not made in vain."""
    wanted = job(disk=0.0003, max_tokens=None)
    run(wanted, Recipe(steps=1, each=16, anchors=32))
    files = (wanted.work / "recorded").glob("*.bin")
    assert 0 < sum(file.stat().st_size for file in files) <= 300_000


def test_refuses_by_name(job, tmp_path):
    """Architectures that hand out no layers, or that were never tried."""
    target = write_mamba(tmp_path / "mamba.gguf")
    with pytest.raises(PairError, match="mamba does not expose its layer inputs"):
        run(job(target=target))
    with pytest.raises(PairError, match=r"mamba\.gguf is not a draft that `train` can"):
        run(job(start=target))


def test_a_folder_of_other_work(job, tmp_path):
    """Two targets never mix."""
    wanted = job(max_tokens=300)
    with pytest.raises(UsageError, match="too few"):
        run(wanted)
    other = write_llama(tmp_path / "other.gguf")
    with pytest.raises(UsageError, match="another target"):
        run(job(target=other))


def test_says_what_is_missing(job, monkeypatch):
    """Without torch nothing begins."""
    monkeypatch.setattr("dspark_gguf.train.run.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs torch"):
        run(job())


def test_the_command(job, dspark):
    """In a few seconds: too few for a good draft, enough for a file and a report."""
    wanted = job()
    words = ["train", "-m", wanted.target, "-o", wanted.output, "--hours", 0.004]
    done = dspark(*words, "--work", wanted.work, "--prompts", wanted.prompts)
    assert done.exit_code == 0, done.output
    assert "tokens a pass on held-out prompts" in done.output
    assert (wanted.work / "curve.svg").exists()
    assert read_header(wanted.output).architecture == "dflash"
    assert dspark("train", "-m", wanted.target, "-o", "draft.bin").exit_code == 2


def test_ctrl_c_says_how_to_go_on(job, dspark, monkeypatch):
    """Exit code 130, and a line; the manifest is there."""
    wanted = job()

    def stop(title):
        raise KeyboardInterrupt

    watch(monkeypatch, stop)
    words = ["train", "-m", wanted.target, "-o", wanted.output, "--hours", 0.004]
    done = dspark(*words, "--work", wanted.work, "--prompts", wanted.prompts)
    assert done.exit_code == 130
    assert "the same command goes on from there" in done.output
    assert (wanted.work / "manifest.json").exists()


def test_more_time_goes_on(job):
    """A finished job is no end: there are more conversations then, and more steps."""
    short = Recipe(anchors=64, each=32, every=20, warm=5, dropout=0.0, steps=20)
    first, _ = run(job(max_tokens=800), short)
    more, _ = run(job(), replace(short, steps=40))
    for step in ("generating", "recording", "training"):
        assert more["spent"][step] > first["spent"][step]
    assert len(more["curve"]) > len(first["curve"])
    checkpoint = torch.load(job().work / "checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == 40
