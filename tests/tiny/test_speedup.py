"""Is it faster here? One answer, for the doctor, `suggest`, the bench and the chat."""

from __future__ import annotations

import json

import pytest

from dspark_gguf import load_pair, speedup
from dspark_gguf.catalog import suggest
from dspark_gguf.chat.loop import Chat
from dspark_gguf.chat.session import Session
from dspark_gguf.config import Settings, Speculation
from dspark_gguf.learned import Learned
from dspark_gguf.learned_costs import LearnedCosts
from dspark_gguf.speedup import Speedup, expected, measured, speedup_here
from tests.fakes import FakeReader, FakeScreen


def costs_of(target, step, seen=3):
    costs = LearnedCosts()
    for rows, seconds in enumerate(target, 1):
        for _ in range(seen):
            costs.add_pass(rows, seconds)
    costs.add_draft_step(step)
    return costs


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ([(1.0, 2.0)] * 3, "faster"),
        ([(1.0, 1.0)] * 6 + [(1.0, 1.5)] * 3, "faster"),
        ([(9.0, 9.0)] * 6 + [(1.0, 1.5)] * 3, "sometimes"),
        ([(1.0, 1.02)] * 3, "same"),
        ([(1.0, 0.98)] * 3, "same"),
        ([(1.0, 0.9)] * 3, "slower"),
        ([(1.0, 2.0)] * 2, "unclear"),
    ],
)
def test_answers_that_were_compared(answers, told):
    """By their sums: a long answer counts for more. Two of them are too few."""
    assert measured(answers).told == told


def test_the_figures_are_those_of_the_time_spent():
    """20 seconds of plain decoding in 10, and between what half of the answers lie: with it."""
    found = measured([(4.0, 12.0), (2.0, 2.0), (2.0, 3.0), (2.0, 3.0)])
    assert found.figures == "2.00x (1.38-2.00x)"
    assert str(found).endswith("plain decoding, measured over 4 answers")
    found = measured([(1.0, 0.98), (1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (9.0, 9.6)])
    assert found.low <= found.typical <= found.high
    assert found.words == "not faster here"


@pytest.mark.parametrize(
    ("ratio", "spread", "count", "told"),
    [
        (1.3, 1.05, 3, "faster"),
        (1.3, 1.4, 3, "unclear"),
        (0.8, 1.4, 3, "unclear"),
        (1.0, 1.4, 3, "unclear"),
        (1.0, 1.09, 3, "same"),
        (1.3, 1.4, 6, "faster"),  # six in a row are no accident
        (2.0, 1.4, 3, "faster"),
    ],
)
def test_no_verdict_where_plain_decoding_itself_changed_more(ratio, spread, count, told):
    """Unless every comparison says the same."""
    found = measured([(1.0, ratio)] * count, spread)
    assert found.told == told
    assert ("no verdict" in str(found)) == (told == "unclear")
    assert found.pays == (told == "faster")


def test_what_is_expected_of_costs():
    """A draft that costs nothing pays everywhere, one as dear as the target nowhere."""
    free, dear = (expected(costs_of([1.0] * 13, 0.1), [cost * k for k in range(1, 13)])
                  for cost in (0.01, 2.0))  # fmt: skip
    assert free.told == "faster"
    assert dear.told == "same"
    assert str(dear) == (
        "not faster here: code 1.0x, chat 1.0x plain decoding, expected from what passes cost here"
    )


def test_costs_that_were_measured_on_a_busy_machine_give_no_verdict():
    """They were seen once, or their repeats did not agree."""
    found = expected(costs_of([1.0] * 13, 0.1, seen=1), [0.01 * k for k in range(1, 13)])
    assert found.told == "unclear"
    assert "busy" in str(found)


def test_comparisons_are_kept_with_the_pair(tmp_path):
    """The newest of them; a file of an earlier version has none."""
    path = tmp_path / "pair.json"
    known = Learned(path)
    known.compare([(1.0, 1.0)] * 10)
    known.compare([(1.0, 2.0)] * 60)
    known.save()
    again = Learned(path)
    assert len(again.comparisons) == 64
    assert again.comparisons.count((1.0, 2.0)) == 60
    values = json.loads(path.read_text())
    del values["comparisons"]
    path.write_text(json.dumps(values))
    assert Learned(path).comparisons == []
    assert Learned(path).note == ""


@pytest.mark.parametrize("hopeless", [False, True])
def test_one_answer_for_whoever_asks(tiny_files, model_folder, monkeypatch, hopeless, dspark):
    """What answers of this pair took beats what its costs promise, in every command."""
    for module in (suggest, speedup):
        monkeypatch.setattr(module, "is_hopeless", lambda *_: hopeless)
    words = ["-m", str(tiny_files.target), "-d", str(tiny_files.draft)]
    with load_pair(tiny_files.target, tiny_files.draft) as pair:
        pair.draft_cache()
        assert speedup_here(pair, Settings()).basis == "expected"
        pair.learned(Speculation()).compare([(1.0, 1.5)] * 8)
        here = speedup_here(pair, Settings())
        screen = FakeScreen()
        Chat(Session(pair, Settings()), screen, FakeReader("/spec", "/stats")).run()
    assert str(here) == "faster here: 1.50x plain decoding, measured over 8 answers"
    assert sum(str(here) in note for note in screen.notes) == 2
    done = dspark("suggest", *words, "--json")
    [row] = [row for row in json.loads(done.stdout) if row["origin"] == "-d"]
    assert row["speedup"] == here.as_dict()
    done = dspark("doctor", *words, "--json")
    assert json.loads(done.stdout)["sections"]["speed"]["speedup"] == here.as_dict()


@pytest.mark.parametrize("mode", ["auto", "on", "off"])
def test_a_chat_adds_its_answers(tiny_files, mode):
    """Those that were drafted as one gets it without options: others say nothing about that."""
    settings = Settings.model_validate(
        {"speculation": {"mode": mode}, "limits": {"max_tokens": 30}}
    )
    with load_pair(tiny_files.target, tiny_files.draft) as pair:
        known = pair.learned(settings.speculation)
        known.comparisons = []
        session = Session(pair, settings)
        for text in ("abc", "def", "ghi"):
            for _ in session.ask(text):
                pass
        assert bool(known.comparisons) == (mode == "auto")


def test_a_bench_adds_its_turns(tiny_files, monkeypatch, dspark):
    """What it measured is what the others say from then on; of a busy machine, nothing is kept."""
    words = ["bench", "-m", tiny_files.target, "-d", tiny_files.draft, "--methods", "default",
             "--tokens", 8, "--temp", 0, "--per-domain", 1, "--domains", "chat",
             "--json"]  # fmt: skip
    for doubt in ("it is too loud", ""):
        with load_pair(tiny_files.target, tiny_files.draft) as pair:
            before = pair.kept().comparisons[-1:]
        monkeypatch.setattr(
            "dspark_gguf.measure.bench.run.measured",
            lambda found, spread, doubt=doubt: Speedup("measured", 1.0, 1.0, 1.0, doubt=doubt),
        )
        done = dspark(*words)
        assert done.exit_code == 0, done.output
        with load_pair(tiny_files.target, tiny_files.draft) as pair:
            newest = pair.kept().comparisons[-1:]
        assert json.loads(done.stdout)["turns"]["measured"] == 1
        assert (newest != before) == (not doubt)
