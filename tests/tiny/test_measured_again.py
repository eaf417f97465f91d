"""What was learned: under which key, saved when, and checked against the machine."""

from __future__ import annotations

import json

import pytest

from dspark_gguf import Speculation, load_pair
from dspark_gguf.chat.loop import Chat
from dspark_gguf.chat.session import Session
from dspark_gguf.config import DraftOptions, ModelOptions
from dspark_gguf.dropin.llama import DSparkLlama
from dspark_gguf.engine import measuring
from dspark_gguf.errors import Cancelled
from dspark_gguf.learned import forget_all, learned_dir
from dspark_gguf.settings_files import load_settings
from tests.fakes import FakeReader, FakeScreen

AUTO = Speculation()
TREE = {"sampling": {"temperature": 0.0, "ignore_eos": True}, "limits": {"max_tokens": 60}}


@pytest.fixture(autouse=True)
def nothing_learned():
    """Each test begins without files."""
    forget_all()


def files():
    return list(learned_dir().glob("*.json"))


def pair_of(tiny_files, **options):
    options = {"n_ctx": 512, **options}
    return load_pair(tiny_files.target, tiny_files.draft, target_options=ModelOptions(**options))


def test_the_key_of_a_pair(tiny_files):
    """The same costs, the same file; what may change them makes another one."""
    for options in ({}, {}, {"mmap": False}, {"rope_freq_base": 20000.0}):
        with pair_of(tiny_files, **options) as pair:
            pair.learned(AUTO)
            assert "0x" not in json.dumps(pair._facts(AUTO))
    assert len(files()) == 1
    for count, options in enumerate(({"threads": 3}, {"cache_type_k": "f32"}), start=2):
        with pair_of(tiny_files, **options) as pair:
            pair.learned(AUTO)
        assert len(files()) == count


def test_what_attention_costs_is_guessed_and_kept(tiny_files):
    """By the bytes of caches and weights, of both models; a drop-in and a second start know it."""
    with pair_of(tiny_files) as pair:
        known = pair.learned(AUTO).costs.attention
        assert known.target.value > 0.0
        assert known.draft.value > 0.0
        assert known.row.value == pytest.approx(1.0)  # on a CPU
        before = known.as_dict()
    with pair_of(tiny_files) as pair:
        assert pair.kept().costs.attention.as_dict() == before
    llama = drop_in(tiny_files)
    assert llama._learned.costs.attention.target.value > 0.0
    llama.create_completion([5, 6, 7], max_tokens=4, temperature=0.0)
    assert llama._learned.costs.attention.depth == 7
    llama.close()


def drop_in(tiny_files, **options):
    options = {"n_ctx": 256, "verbose": False, "n_threads": 2, **options}
    return DSparkLlama(str(tiny_files.target), **options)


def test_the_key_of_a_drop_in(tiny_files):
    """Seeds, chat formats, handlers and loaded drafts with their addresses are not in it."""

    def handler(**words):
        """No costs depend on it."""

    same = ({}, {"seed": 5}, {"chat_format": "chatml"}, {"chat_handler": handler},
            {"last_n_tokens_size": 8})  # fmt: skip
    for options in same:
        drop_in(tiny_files, **options).close()
    assert len(files()) == 1
    drop_in(tiny_files, n_threads=1).close()
    assert len(files()) == 2
    for _ in range(2):
        draft = drop_in(tiny_files, speculation=Speculation(mode="off"))
        drop_in(tiny_files, draft_model=draft).close()
        draft.close()
    assert len(files()) == 3
    for _ in range(2):
        drop_in(tiny_files, draft_model=tiny_files.draft, draft_options=DraftOptions()).close()
    assert len(files()) == 4


@pytest.mark.parametrize("n_ctx", [16, 40, 80])
def test_small_contexts_learn_too(tiny_files, n_ctx, monkeypatch):
    """The costs are measured once, as far as there is room, and found by the next process."""
    with pair_of(tiny_files, n_ctx=n_ctx) as pair:
        pair.learned(AUTO)
    drop_in(tiny_files, n_ctx=n_ctx, draft_model=tiny_files.draft).close()
    monkeypatch.setattr(measuring, "quick_profile", None)
    with pair_of(tiny_files, n_ctx=n_ctx) as pair:
        assert pair.learned(AUTO).costs.covers(64, drafts=True)
    llama = drop_in(tiny_files, n_ctx=n_ctx, draft_model=tiny_files.draft)
    said = llama.create_completion([1, 2, 3], max_tokens=8, temperature=0.0)
    assert said["usage"]["total_tokens"] <= 11
    llama.close()


def test_saved_during_a_conversation(tiny_files):
    """Nothing closes it here; a drop-in saves too."""
    with pair_of(tiny_files, n_ctx=1024) as pair:
        session = Session(pair, load_settings(None, TREE))
        for text in "abcdef":
            list(session.ask(text))
        assert len(files()) == 1
        assert '"lookup/' in files()[0].read_text()
    forget_all()
    llama = drop_in(tiny_files)
    never_ends = dict.fromkeys(range(94, 263), -1e6)
    for _ in range(2):
        said = llama.create_completion([1, 2, 3], temperature=0.0, max_tokens=200,
                                       logit_bias=never_ends)  # fmt: skip
        assert said["usage"]["completion_tokens"] == 200
    assert len(files()) == 1
    llama.close()


def test_a_file_is_checked(tiny_files):
    """All figures ten times too high: the next process takes the lower ones at once."""
    with pair_of(tiny_files) as pair:
        before = pair.learned(AUTO).costs.target_seconds[0]
    (path,) = files()
    values = json.loads(path.read_text())
    values["costs"]["level"] *= 10.0
    path.write_text(json.dumps(values))
    with pair_of(tiny_files) as pair:
        assert pair.learned(AUTO).costs.target_seconds[0] < 5.0 * before


def test_measuring_again_leaves_the_caches(tiny_files):
    """Their tokens, and the rows that follow; nothing is done where there is no room or time."""
    with pair_of(tiny_files) as pair:
        costs = pair.learned(AUTO).costs
        caches = pair.caches.values()
        for cache in caches:
            cache.decode([5, 6, 7], 0)
        before = [cache.decode([8], 1)[0].copy() for cache in caches]
        for cache in caches:
            cache.trim(3)
        passes = costs._passes
        pair.measure_again(0.0)
        assert costs._passes == passes
        pair.measure_again(5.0)
        assert costs._passes > passes
        assert [cache.tokens for cache in caches] == [[5, 6, 7]] * 2
        after = [cache.decode([8], 1)[0].copy() for cache in caches]
        for one, other in zip(before, after, strict=True):
            assert one == pytest.approx(other, abs=1e-4)
        for cache in caches:
            cache.trim(3)
        passes = costs._passes
        pair.interrupt.set()
        pair.measure_again(5.0)
        pair.interrupt.clear()
        assert costs._passes == passes
        assert [cache.tokens for cache in caches] == [[5, 6, 7]] * 2


@pytest.mark.parametrize("watched", [True, False])
def test_the_chat_measures_while_somebody_reads(tiny_files, watched):
    """After each answer once, for a small part of its time; never in a pipe."""
    with pair_of(tiny_files) as pair:
        budgets = []
        pair.measure_again = budgets.append
        screen = FakeScreen()
        screen.on_terminal = watched
        session = Session(pair, load_settings(None, TREE))
        chat = Chat(session, screen, FakeReader("hello", "/help", "again"))
        chat.run()
        assert len(budgets) == (2 if watched else 0)
        assert all(0 < budget <= 0.25 for budget in budgets)
        assert not watched or budgets[1] <= 0.03 * session.last.tally.seconds


def stalled(target, draft, costs, budget, limit, show):
    """A profile in which each draft step and all that is read take seconds."""
    costs.add_draft_step(5.0)
    costs.add_first_draft_step(5.0, 2)
    costs.add_first_draft_step(99.0, 64)
    costs.add_profile({1: 0.001, 2: 5.0, 9: 9.0}, ())
    costs.profiled = limit


def test_what_says_that_a_draft_hardly_wins_is_measured_again(tiny_files, monkeypatch):
    """One stall may have said so. It shows how long that takes, and an interrupt ends it."""
    shown = []
    monkeypatch.setattr(measuring, "quick_profile", stalled)
    with pair_of(tiny_files) as pair:
        pair._on_progress = lambda text, left=None: shown.append(left)
        costs = pair.learned(AUTO).costs
        assert max(costs.draft_seconds[0], costs.target_seconds[1]) < 1.0
        assert costs.catch_up_seconds(64) < 5.0
        assert shown
        assert min(shown) > 0.0
    forget_all()
    with pair_of(tiny_files) as pair:
        pair.interrupt.set()
        with pytest.raises(Cancelled):
            pair.learned(AUTO)
