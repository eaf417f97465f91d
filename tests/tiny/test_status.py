"""The line after an answer: short, and true on a busy machine."""

from __future__ import annotations

import pytest

from dspark_gguf.chat import gain as gains
from dspark_gguf.chat.gain import Gain
from dspark_gguf.chat.loop import Chat
from dspark_gguf.chat.session import Session
from dspark_gguf.chat.status import Summary, stats_table, status_line
from dspark_gguf.config import ModelOptions
from dspark_gguf.dist import Dist
from dspark_gguf.engine.pair import Pair
from dspark_gguf.records import Draft, Round, Segment, Verdict
from dspark_gguf.settings_files import load_settings
from dspark_gguf.tally import Answer
from tests.fakes import FakeReader, FakeScreen

SUMMARY = Summary("match", True, 20.0, 30.0, None, context=(1240, 8192))


def plain(seconds=0.1, draft_seconds=0.0):
    return Round((1,), seconds=seconds + draft_seconds, draft_seconds=draft_seconds)


def drafted(seconds=0.1, right=3, of=3, source="model"):
    tokens = tuple(range(of))
    segment = Segment(source, tokens, tuple(map(Dist.point, tokens)))
    said = (*tokens[:right], 9)
    return Round(said, draft=Draft(segment), verdict=Verdict(right, 9), seconds=seconds)


def line(rounds, usual=None, gain=None):
    """The status line after an answer of these rounds."""
    gain, answer = gain or Gain(), Answer()
    gain.start()
    for round in rounds:
        gain.add(round)
        answer.add(round)
    gain.finish(usual)
    found = {"ratio": gain.ratio, "sources": gain.sources, "saved": gain.saved,
             "is_busy": gains.machine_is_busy()}  # fmt: skip
    facts = {name: getattr(SUMMARY, name) for name in SUMMARY.__slots__} | found
    return status_line(answer, Summary(**facts))


@pytest.fixture(autouse=True)
def load(monkeypatch):
    """What the system says of other work; nothing, unless the test says otherwise."""
    loads = [0.0, 0.0, 0.0]
    monkeypatch.setattr("psutil.getloadavg", lambda: loads)
    return loads


def test_tokens_speed_ratio_its_source_and_the_context():
    """In this order, in one short line."""
    rounds = [plain()] * 10 + [drafted(source="lookup")] * 5
    assert line(rounds) == "30 tok · 20.0 tok/s · 2.0x (copies) · ctx 1,240/8,192"
    rounds = [plain()] * 10 + [drafted(source="lookup"), drafted()] * 5
    assert "(copies + draft)" in line(rounds)
    assert "1.00x (draft)" in line([plain()] * 98 + [drafted(right=0)] * 2)


def test_slowness_without_drafting_is_not_booked_as_lost():
    """A machine that became seven times slower: 97% of the rounds had no draft at all."""
    gain = Gain()
    said = line([plain(0.7)] * 97 + [drafted(0.7, right=0)] * 3, usual=14.2, gain=gain)
    assert "1.00x" in said
    assert gain.saved == pytest.approx(0.0, abs=1e-9)
    assert "plain · ctx" in line([plain(0.7)] * 30, usual=14.2, gain=gain)
    assert gain.ratio is None


def test_time_lost_by_drafting_is_told():
    """Drafts that were wrong, and drafting in rounds that then had no draft."""
    gain = Gain()
    assert "0.67x (draft)" in line([plain(), drafted(0.2, right=0)] * 10, gain=gain)
    assert gain.saved == pytest.approx(-1.0)
    line([plain(draft_seconds=0.1)] * 10 + [drafted(0.1, right=0)], gain=gain)
    assert gain.saved == pytest.approx(-2.0)


def test_no_plain_rounds_of_the_same_time(load):
    """An older measurement will do, but not while the machine does something else."""
    rounds = [drafted()] * 10
    assert "2.0x (draft)" in line(rounds, usual=20.0)
    assert "40.0 tok/s · with draft · ctx" in line(rounds)
    load[0] = 100.0
    assert "40.0 tok/s · machine busy, no ratio · ctx" in line(rounds, usual=20.0)


def test_plain_rounds_of_the_last_minute_will_do(load, monkeypatch):
    """Of the answer before; a minute later they say nothing any more."""
    load[0], now, gain = 100.0, [1000.0], Gain()
    monkeypatch.setattr(gains, "monotonic", lambda: now[0])
    line([plain()] * 10, gain=gain)
    assert "4.0x" in line([drafted()] * 10, usual=1.0, gain=gain)
    now[0] += 61
    assert "machine busy, no ratio" in line([drafted()] * 10, usual=1.0, gain=gain)


def test_plain_rounds_that_disagree_too_much(load):
    """Their own spread is more than the difference: no verdict."""
    load[0] = 100.0
    rounds = [plain(0.05), plain(0.6)] * 5 + [drafted(0.3, right=0)] * 10
    assert "machine busy, no ratio" in line(rounds)


def test_stats_have_the_rest():
    """The newest answer beside all of them."""
    answer = Answer()
    for round in [plain(), drafted()]:
        answer.add(round)
    rows = dict(stats_table(answer.tally, answer.tally, SUMMARY))
    assert rows["rounds without a draft"].split() == ["1", "1"]
    assert rows["accepted"].split() == ["3", "(100%)", "3", "(100%)"]
    assert rows["context"] == "1,240 of 8,192 tokens used"
    assert rows["all answers"] == "drafting saved 0.0 s (an estimate)"


def test_a_chat_shows_how_full_the_context_is(tiny_files):
    """It grows with every answer."""
    settings = load_settings(None, {"limits": {"max_tokens": 3}, "speculation": {"mode": "off"}})
    screen = FakeScreen()
    with Pair(tiny_files.target, None, ModelOptions(n_ctx=256)) as pair:
        Chat(Session(pair, settings), screen, FakeReader("One.", "Two.", "/stats")).run()
    used = [int(note.split("ctx ")[1].split("/")[0]) for note in screen.notes if "ctx " in note]
    assert len(used) == 2
    assert 0 < used[0] < used[1] < 256
    assert any("of 256 tokens used" in note for note in screen.notes)
