"""Recorded chains, replays, the grid, and the targets of the scheduler."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from dspark_gguf.config import Limits, Sampling
from dspark_gguf.cost import FixedCosts
from dspark_gguf.draft import Cascade, LookupDrafter, ModelDrafter
from dspark_gguf.errors import UsageError
from dspark_gguf.measure.chains import Chains, Guesses, load_chains, save_chains
from dspark_gguf.measure.replay import STATIC, make_rule, play, replay
from dspark_gguf.measure.trace import Tracer, lookup_guesses
from dspark_gguf.sampling import margin
from dspark_gguf.schedule import Fixed, Threshold
from dspark_gguf.testing import TableModel, agreeing_rows, random_rows
from tests.fakes import Letters, World
from tests.tiny.test_scripts import script

TARGETS = script("replay_targets")
COSTS = FixedCosts([1.0, 1.5, 2.0, 2.25], [0.1, 0.2, 0.3])


def chains(survived, confidence=None, domain="x", gap=None):
    """Chains from rows of 0 and 1."""
    alive = np.array(survived, dtype=bool)
    told = np.full(alive.shape, 0.9) if confidence is None else np.array(confidence)
    return Chains(domain, told.astype(np.float32), alive, gap)


TEXT = chains([[1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]])


def test_fixed_by_hand():
    """Two drafts always: from 0 to 3 (2 accepted), from 3 to 6, and from 6 to the end."""
    result = replay([TEXT], COSTS, Fixed(2))
    assert (result.rounds, result.drafted, result.verified) == (3, 6, 6)
    assert result.tokens == 7
    assert result.seconds == pytest.approx(3 * (0.2 + 2.0))
    assert result.accepted == 4
    assert result.speedup == pytest.approx(7 / 6.6)


def test_a_look_is_paid_for_even_when_its_token_is_dropped():
    """The threshold looks at a second row, finds it unsure, and verifies one token."""
    text = chains([[1, 1, 1]] * 2, [[0.9, 0.2, 0.9]] * 2)
    result = replay([text], COSTS, Threshold(3, 0.5))
    assert (result.rounds, result.drafted, result.verified) == (1, 2, 1)
    assert result.seconds == pytest.approx(0.2 + 1.5)


def test_plain_decoding_is_the_unit():
    """No drafts: a second a token, speedup 1."""
    result = replay([TEXT], COSTS, Fixed(0))
    assert (result.speedup, result.rounds) == (1.0, 7)


def test_json_as_documented():
    """The keys of the output, and plain_seconds over seconds."""
    found = replay([TEXT, TEXT], COSTS, Fixed(1)).as_dict("fixed:max=1")
    assert set(found) == {
        "rule", "tokens", "seconds", "plain_seconds", "speedup", "domains", "rounds", "drafted",
        "verified", "accepted",
    }  # fmt: skip
    assert found["speedup"] == found["plain_seconds"] / found["seconds"]
    assert set(found["domains"]["x"]) == {"tokens", "seconds", "speedup"}


@pytest.mark.parametrize("seed", range(20))
def test_no_rule_beats_the_one_that_knows(seed):
    """And that one is the best of all fixed choices, position by position: brute force agrees."""
    rng = np.random.default_rng(seed)
    alive = np.logical_and.accumulate(rng.random((6, 3)) < 0.7, axis=1)
    text = chains(alive, rng.random((6, 3)))
    bound = TARGETS.clairvoyant([text], COSTS)
    for name in (*STATIC, "optimal", "prefix"):
        assert play(name, [text], COSTS).speedup <= bound + 1e-9

    def least(t):
        if t >= 6:
            return 0.0
        return min(
            (COSTS.draft_seconds[k - 1] if k else 0.0) + COSTS.target_seconds[k]
            + least(t + 1 + min(k, int(alive[t].sum())))
            for k in range(4)
        )  # fmt: skip

    assert bound == pytest.approx(6 / least(0))


def test_saved_and_loaded(tmp_path):
    """Every array comes back; single matches are read as survival of the whole chain."""
    gap = np.ones((7, 3), dtype=np.float32)
    save_chains(tmp_path / "c.npz", [TEXT, chains([[1, 0]], domain="code", gap=gap[:1, :2])])
    one, other = load_chains(tmp_path / "c.npz")
    assert (one.survived == TEXT.survived).all()
    assert (one.confidence == TEXT.confidence).all()
    assert one.gap is None
    assert other.domain == "code"
    assert other.gap.tolist() == [[1, 1]]
    single = {"confidence_0": np.ones((1, 3)), "survived_0": np.array([[1, 0, 1]], dtype=bool)}
    np.savez(tmp_path / "s.npz", **single, domain_0="x")
    assert load_chains(tmp_path / "s.npz")[0].survived.tolist() == [[True, False, False]]


@pytest.mark.parametrize(
    "arrays",
    [{}, {"confidence_0": np.ones((2, 3))},
     {"confidence_0": np.ones((2, 3)), "survived_0": np.ones((3, 3), bool)},
     {"confidence_0": np.ones((2, 3), complex), "survived_0": np.ones((2, 3), bool)},
     {"confidence_0": np.ones((2, 3)), "survived_0": np.ones((2, 3), complex)},
     {"confidence_0": np.full((2, 3), "1"), "survived_0": np.ones((2, 3), bool)},
     {"confidence_0": np.ones((1, 3)), "survived_0": np.ones((1, 3), bool),
      "gap_0": np.ones((1, 3), complex)},
     {"confidence_0": np.full((2, 3), np.nan), "survived_0": np.ones((2, 3), bool)},
     {"confidence_0": np.ones((0, 3)), "survived_0": np.ones((0, 3), bool)},
     {"confidence_0": np.ones((1, 3)), "survived_0": np.ones((1, 3), bool), "gap_0": np.ones(2)}],
)  # fmt: skip
def test_other_files_are_refused_in_one_line(tmp_path, arrays):
    """The fault, and what to do."""
    path = tmp_path / "c.npz"
    np.savez(path, **arrays)
    with pytest.raises(UsageError, match="dspark-gguf trace"):
        load_chains(path)
    path.write_text("no chains")
    with pytest.raises(UsageError, match="dspark-gguf trace"):
        load_chains(path)
    with pytest.raises(UsageError, match="Check the path"):
        load_chains(tmp_path / "missing.npz")


def test_rules_by_name():
    """Documented names, the spellings of llama.cpp, and 37 static ones."""
    rule = make_rule("threshold:p=0.4,max=5", COSTS)
    assert (rule.min_probability, rule.length) == (0.4, 5)
    assert make_rule("threshold:p_min=0.4,n_max=5", COSTS).length == 5
    assert make_rule("fixed:k=7", COSTS).length == 7
    assert make_rule("optimal:max=2", COSTS).limit == 2
    assert make_rule("optimal", COSTS).limit == 3
    assert len(set(STATIC)) == 37


@pytest.mark.parametrize(
    "name",
    ["", "best", "fixed:p=0.5", "fixed:max", "fixed:max=x", "fixed:max=-1", "fixed:max=99",
     "threshold:p=2", "threshold:p=nan", "optimal:max=1.5"],
)  # fmt: skip
def test_other_names_are_refused(name):
    """With what would have been right."""
    with pytest.raises(UsageError, match="--rule"):
        make_rule(name, COSTS)


def test_command_line(tmp_path, dspark):
    """Text and JSON, with the grid and warm; a wrong rule exits with 2."""
    save_chains(tmp_path / "c.npz", [TEXT])
    table = {"target_seconds": [1, 1.5, 2, 2.25], "draft_seconds": [0.1, 0.2, 0.3]}
    (tmp_path / "t.json").write_text(json.dumps(table))
    words = ["replay", "--chains", str(tmp_path / "c.npz"), "--table", str(tmp_path / "t.json")]
    found = json.loads(dspark(*words, "--json", "--rule", "fixed:max=2").stdout)
    assert found["speedup"] == pytest.approx(7 / 6.6)
    again = [*words, "--grid", "--warm", str(tmp_path / "c.npz")]
    result = dspark(*again)
    assert result.exit_code == 0
    assert "best static setting" in result.stdout
    full = json.loads(dspark(*again, "--json").stdout)
    assert len(full["grid"]) == 37
    assert full["best"]["speedup"] == max(one["speedup"] for one in full["grid"])
    for rule, why in (("best", "unknown rule"), ("lookup", "without the copies")):
        wrong = dspark(*words, "--rule", rule)
        assert wrong.exit_code == 2
        assert why in wrong.stderr


def copied(scores, survived, text=None):
    """Chains with copies beside them; without `text`, of depth 0."""
    told, alive = np.array(scores, dtype=np.float32), np.array(survived, dtype=bool)
    if text is None:
        nothing = np.zeros((len(told), 0))
        return Chains(
            "x", nothing.astype(np.float32), nothing.astype(bool), None, Guesses(told, alive)
        )
    return replace(text, lookup=Guesses(told, alive))


NAN = float("nan")


def test_copies_by_hand():
    """Cheap rows: both copies are verified at once, and the third token comes with them."""
    text = copied([[9.0, 9.0]] + [[NAN, NAN]] * 3, [[1, 1]] + [[0, 0]] * 3)
    costs = FixedCosts([1.0, 1.1, 1.2], [0.0, 0.0])
    result = replay([text], costs, make_rule("lookup", costs))
    assert (result.rounds, result.drafted, result.verified, result.accepted) == (2, 0, 2, 2)
    assert result.seconds == pytest.approx(2.2)
    assert result.speedup == pytest.approx(4 / 2.2)


def test_copies_and_looks_in_one_round():
    """Sure copies at the start, then a sure draft where they end; more than either alone."""
    rng = np.random.default_rng(0)
    sure, alive = np.full((200, 8), 9.0), np.ones((200, 8), dtype=bool)
    short = sure.copy()
    short[:, 3:] = NAN
    text = Chains("x", np.full((200, 8), 0.999, dtype=np.float32), alive, sure.astype(np.float32))
    both = copied(short, ~np.isnan(short), text)
    costs = FixedCosts(1.0 + 0.02 * np.arange(33), 0.1 * np.arange(1, 33))
    speeds = {name: play(name, [both], costs).speedup for name in ("lookup", "optimal", "cascade")}
    assert speeds["cascade"] > 1.15 * max(speeds["lookup"], speeds["optimal"])
    wrong = copied(short, rng.random(short.shape) < 0.05, text)
    assert play("cascade", [wrong], costs).speedup > 0.9 * play("optimal", [wrong], costs).speedup


@pytest.mark.parametrize("rule", ["lookup", "cascade", "optimal"])
@pytest.mark.parametrize("seed", range(3))
def test_a_replay_is_what_happens(rule, seed):
    """The rounds of a live answer, with costs from a table, are those of its replay."""
    rows, prompt, length = random_rows(3, seed=seed), [0, 1, 0, 1], 320
    world = World(rows, agreeing_rows(rows, 0.8), Letters(3), n_ctx=400, draft_n_ctx=400)
    world.sampling = Sampling(temperature=0, logit_bias={2: "-inf"})
    said = world.plain(prompt, Limits(max_tokens=length))[0]
    prefixes = [[*prompt, *said[:t]] for t in range(length - 80)]
    tracer = Tracer(TableModel(rows_without_end(world.draft_rows), 400), 12, 3)
    chains = [tracer.chain(prefix) for prefix in prefixes]
    told = np.array([scores for _, scores in chains], dtype=np.float32)
    right = [[tokens[: k + 1] == said[t : t + k + 1] for k in range(12)]
             for t, (tokens, _) in enumerate(chains)]  # fmt: skip
    lookup = LookupDrafter(Letters(3))
    text = Chains("x", told[..., 0], np.array(right), told[..., 1],
                  lookup_guesses(lookup, prefixes, said))  # fmt: skip
    table = FixedCosts(1.0 + 0.05 * np.arange(65), 0.05 * np.arange(1, 65))

    def drafter(cache, sampler, tokenizer):
        looking = ModelDrafter(cache, sampler, tokenizer, margin)
        if rule == "optimal":
            return looking
        lookup = LookupDrafter(tokenizer)
        return lookup if rule == "lookup" else Cascade(lookup, looking)

    world.drafter_kind, world.draft_rows = drafter, rows_without_end(world.draft_rows)
    limit = "optimal:max=12" if rule == "optimal" else rule
    live = world.decoder(stopping_rule=make_rule(limit, table))
    wanted = [
        (r.drafted, r.accepted, r.draft.steps)
        for r in live.generate(prompt, Limits(max_tokens=length)) if not r.prompt_tokens
    ]  # fmt: skip
    replayed, played = make_rule(limit, table), []
    observe = replayed.observe
    replayed.observe = lambda r: (
        played.append((r.drafted, r.accepted, r.draft.steps)), observe(r)
    )  # fmt: skip
    result = replay(
        [TARGETS.stretch(text, slice(1, None))], table, replayed
    )  # the prompt's pass yields the first token
    if rule == "cascade":  # behind wrong tokens a replay only knows what stands in the text
        speed = sum(a + 1 for _, a, _ in wanted) / sum(
            table.target_seconds[drafted] + (table.draft_seconds[looks - 1] if looks else 0.0)
            for drafted, _, looks in wanted
        )
        assert result.speedup == pytest.approx(speed, rel=0.12)
        return
    position = same = 0
    while position < text.positions - 80:
        assert played[same] == wanted[same]
        position += played[same][1] + 1
        same += 1
    assert sum(drafted for drafted, _, _ in played[:same]) > 10


def rows_without_end(rows):
    """The same, with an end token that is never the best."""

    def row_of(prefix):
        row = rows(prefix).copy()
        row[-1] = -50.0
        return row

    return row_of


def test_copies_saved_and_loaded(tmp_path):
    """With and without a draft model's chains; a stretch of them too."""
    path = tmp_path / "chains.npz"
    text = copied([[2.0, 3.0], [1.0, NAN], [NAN, NAN]], [[1, 0], [1, 0], [0, 0]])
    save_chains(path, [text])
    (again,) = load_chains(path)
    assert again.lookup.rows == text.lookup.rows == [([2.0, 3.0], 1), ([1.0], 1), ([], 0)]
    rest = TARGETS.stretch(again, slice(1, None))
    assert rest.lookup.rows == [([1.0], 1), ([], 0)]
    assert again.depth == 0
    assert play("optimal", [again], COSTS).speedup == 1.0
