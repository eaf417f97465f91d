"""Which drafter settings choose, refuse, or leave out."""

from __future__ import annotations

import pytest

from dspark_gguf.assemble import assemble
from dspark_gguf.config import Sampling, Speculation
from dspark_gguf.draft import Cascade, LookupDrafter, ModelDrafter, NoDrafter
from dspark_gguf.errors import UsageError
from dspark_gguf.learned import Learned
from dspark_gguf.testing import TableModel, random_rows
from tests.fakes import Letters
from tests.unit.test_drafter import N_TOKENS


class FakeCache(TableModel):
    """A draft model's cache as the assembly knows it."""

    kind = "model"


def test_settings_choose_the_drafter():
    """Off: the draft model is not even loaded. Without one: copies alone.

    Only `rejection` draws from the draft; the other rules do better with its best guess.
    """
    cache = FakeCache(random_rows(N_TOKENS))
    sampling = Sampling(temperature=0.7, top_k=3)
    asked = []

    def made(draft, **settings):
        def load():
            asked.append(draft)
            return draft

        target, vocabulary = TableModel(random_rows(N_TOKENS)), Letters(N_TOKENS)
        speculation = Speculation(**settings)
        return assemble(target, load, vocabulary, sampling, speculation, Learned).drafter

    assert isinstance(made(cache, mode="off"), NoDrafter)
    assert isinstance(made(cache, drafter="lookup"), LookupDrafter)
    assert not asked
    assert isinstance(made(None), LookupDrafter)
    assert isinstance(made(cache), Cascade)
    assert isinstance(made(cache, drafter="model"), ModelDrafter)
    assert isinstance(made(cache, rule="fixed"), ModelDrafter)
    for rule in ("rejection", "match", "typical", "threshold"):
        drafter = made(cache, acceptance=rule, drafter="model")
        assert isinstance(drafter, ModelDrafter)
        assert drafter.cache is cache
        settings = drafter.sampler.settings
        assert (settings.temperature, settings.top_k) == (0.7, 3)
        assert drafter.shares_noise == (rule != "rejection")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"drafter": "model"}, "--drafter model needs a draft model"),
        ({"drafter": "mine"}, "'mine'"),
        ({"drafter": "block", "draft": True}, "leave --drafter out"),
        ({"drafter": "model", "lookup_store": "x", "draft": True}, "lookup store"),
        ({"rule": "fixed", "lookup_store": "x", "draft": True}, "lookup store"),
    ],
)
def test_what_cannot_be_honoured_is_refused(settings, named):
    """By name; nothing that was asked for is left out in silence."""
    cache = FakeCache(random_rows(N_TOKENS)) if settings.pop("draft", False) else None
    target, speculation = TableModel(random_rows(N_TOKENS)), Speculation(**settings)
    with pytest.raises(UsageError, match=named):
        assemble(target, lambda: cache, Letters(N_TOKENS), Sampling(), speculation, Learned)


@pytest.mark.parametrize(
    ("step", "settings", "sure", "used"),
    [
        (1.0, {}, True, False),  # a step as dear as a pass
        (1.0, {}, False, True),  # in a busy moment, perhaps
        (0.1, {}, True, True),
        (1.0, {"drafter": "model"}, True, True),  # asked for
        (1.0, {"mode": "on"}, True, True),
    ],
)
def test_a_draft_that_could_win_nothing_is_left_out(step, settings, sure, used):
    """Even if it were always right: copies alone, unless the user asked for it."""
    learned, cache = Learned(), FakeCache(random_rows(N_TOKENS))
    passes = {rows: 1.0 + 0.1 * rows for rows in range(1, 14)}
    learned.costs.add_profile(passes, passes if sure else ())
    learned.costs.add_draft_step(step)
    learned.costs.profiled = 64
    target, vocabulary = TableModel(random_rows(N_TOKENS)), Letters(N_TOKENS)
    made = assemble(
        target, lambda: cache, vocabulary, Sampling(), Speculation(**settings), lambda: learned
    )
    assert isinstance(made.drafter, LookupDrafter) != used
