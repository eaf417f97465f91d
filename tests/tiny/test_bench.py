"""The bench's own logic: fair turns, exact ratios, and plain words where drafting loses."""

from __future__ import annotations

import itertools
import json

import pytest

from dspark_gguf.config import Settings, Speculation
from dspark_gguf.errors import UsageError
from dspark_gguf.measure.bench import text
from dspark_gguf.measure.bench.plan import choose_prompts, default_methods, make_methods, make_plan
from dspark_gguf.measure.bench.results import Figure, Results
from dspark_gguf.measure.bench.turns import WARM_UP, OwnProgram, Task, play, warm_up
from dspark_gguf.measure.charts import bars
from tests.bench_fakes import Clock, results, sample, timed_decoder

MODEL = "model"
TWO = results(
    {
        (0, "chat"): {"plain": 1.0, "fixed-3": 2.0, "default": 1.0, "server": 0.1},
        (1, "chat"): {"plain": 1.0, "fixed-3": 1.6, "default": 1.1, "server": 0.1},
        (2, "code"): {"plain": 1.0, "fixed-3": 0.5, "default": 0.8, "server": 0.1},
    },
    peers=["server"],
)


@pytest.mark.parametrize(
    ("draft_kind", "wanted"),
    [
        (MODEL, "plain fixed-1 fixed-3 fixed-8 model lookup default"),
        ("block", "plain fixed-1 fixed-3 fixed-8 block lookup default"),
        ("", "plain fixed-3 fixed-8 default"),
    ],
)
def test_the_usual_ways_are_those_that_the_pair_can_go(draft_kind, wanted):
    """Each drafter that is there, and nothing that is not."""
    names = default_methods(draft_kind)
    assert names == wanted.split()
    assert [method.name for method in make_methods(names, draft_kind)] == names


def test_ways_by_name():
    """A name says what is set; plain decoding is always there, first, and once."""
    methods = {
        method.name: method.speculation
        for method in make_methods(["8-at-0.5", "fixed-2", "plain"], MODEL)
    }
    assert list(methods) == ["plain", "8-at-0.5", "fixed-2"]
    assert methods["8-at-0.5"].stopping_rule == "threshold"
    assert (methods["8-at-0.5"].draft_max, methods["8-at-0.5"].draft_min_prob) == (8, 0.5)
    assert methods["fixed-2"].stopping_rule == "fixed"
    assert methods["fixed-2"].draft_max == 2
    assert not any(speculation.learn for speculation in methods.values())


def test_own_options_are_one_more_way():
    """What the user set is measured beside what he would get without."""
    methods = make_methods(["default"], MODEL, Speculation(draft_max=5))
    assert [method.name for method in methods] == ["plain", "default", "yours"]
    assert methods[-1].speculation == Speculation(draft_max=5, learn=False)


@pytest.mark.parametrize(
    ("name", "draft_kind", "got"),
    [
        ("fastest", MODEL, "fastest.*plain, fixed-K"),
        ("fixed-0", MODEL, "fixed-0.*1 to 64"),
        pytest.param("fixed-" + "9" * 5000, MODEL, "fixed-999", id="5000 digits"),
        ("65-at-0.5", MODEL, "65-at-0.5.*1 to 64"),
        ("3-at-7", MODEL, "3-at-7.*plain, fixed-K"),
        ("model", "", "a draft model"),
        ("cascade", "", "a draft model"),
        ("block", MODEL, "a block draft"),
        ("yours", MODEL, "options of speculation"),
    ],
)
def test_a_way_that_cannot_be_gone_is_refused(name, draft_kind, got):
    """With the names that there are, or what is missing."""
    with pytest.raises(UsageError, match=got):
        make_methods([name], draft_kind)


class Named:
    """A program that notes what it was asked."""

    def __init__(self, name):
        self.name, self.tasks = name, []

    def answer(self, task):
        self.tasks.append(task)
        return sample(self.name, task.domain, 1.0).tally


def test_the_order_turns_so_that_nobody_is_always_first():
    """Over as many turns as methods, each method is once at each place."""
    programs = [Named(name) for name in "abc"]
    tasks = [Task("chat", (1,), 0.0, 8, turn) for turn in range(3)]
    orders = [[sample.method for sample in turn] for turn in play(programs, tasks)]
    assert orders == [list("abc"), list("bca"), list("cab")]
    assert all(set(place) == set("abc") for place in zip(*orders, strict=True))


def test_warming_up_is_short_and_not_counted():
    """Each program says a few tokens of each task before the first turn."""
    program = Named("a")
    warm_up([program], [Task("", (1,), 0.0, 500), Task("", (1,), 0.7, 500)])
    assert [task.most for task in program.tasks] == [WARM_UP] * 2


@pytest.fixture
def clock(monkeypatch):
    """The decoder's clock stands still but for the models."""
    clock = Clock()
    monkeypatch.setattr("dspark_gguf.generation.perf_counter", clock)
    return clock


def speed(clock, speculation, agreement):
    program = OwnProgram("x", lambda temperature: timed_decoder(clock, speculation, agreement))
    tally = program.answer(Task("chat", (1, 2, 3), 0.0, 25))
    assert tally.tokens == 25
    return tally.tokens_per_second


def test_a_speed_is_exactly_tokens_over_seconds(clock):
    """Plain: 1 token a second. Three drafts: 4 tokens in 1.3 + 3 * 0.2 s if right, 1 if wrong."""
    always = Speculation(mode="on", draft_max=3, draft_min_prob=0)
    assert speed(clock, Speculation(mode="off"), 1.0) == pytest.approx(1.0)
    assert speed(clock, always, 1.0) == pytest.approx(4 / 1.9)
    assert speed(clock, always, 0.0) < 0.6


def test_every_answer_begins_with_empty_caches(clock):
    """The same prompt again is read again: nobody profits from who came before."""
    program = OwnProgram("x", lambda _: timed_decoder(clock, Speculation(mode="off"), 1.0))
    task = Task("chat", (1, 2, 3), 0.0, 4)
    assert [program.answer(task).prefill_seconds for _ in range(2)] == [1.0, 1.0]


@pytest.mark.parametrize("seed", [None, 5])
def test_draws_come_again_in_the_next_run(clock, seed):
    """Without a seed too: of the turn's number, so that a run can be repeated."""

    def said(turn):
        decoder = timed_decoder(clock, Speculation(mode="off"), 1.0, 0.7, seed)
        OwnProgram("x", lambda _: decoder).answer(Task("chat", (1, 2), 0.7, 8, turn))
        return decoder.target.tokens

    assert said(3) == said(3)
    assert (said(3) == said(4)) == (seed is not None)


def test_ratios_are_taken_within_a_turn():
    """Of each turn first, then the median: not a quotient of two means."""
    rows = TWO.at(0.0).rows
    assert rows["fixed-3"].ratios["chat"] == Figure(0.5625, 0.5, 0.625, 2)
    assert rows["fixed-3"].ratios["code"] == Figure(2.0, 2.0, 2.0)
    assert rows["plain"].ratios["code"] == Figure(1.0, 1.0, 1.0)
    assert TWO.turns == 3
    assert rows["fixed-3"].cells()["worst"] == "chat 0.56"


def test_an_answer_that_says_nothing_has_no_ratio():
    """A first token that ends the answer leaves nothing to divide by."""
    found = Results(["plain", "a"])
    found.samples += [sample("plain", "chat", 1.0), sample("a", "chat", 1.0, tokens=0)]
    assert found.at(0.0).rows["a"].ratios == {}
    assert found.at(0.0).rows["a"].losses == {}


def test_where_plain_decoding_wins():
    """Ties are its own; a peer that is faster is none of our methods."""
    assert TWO.at(0.0).plain_wins == ["chat"]
    found = {row.method: row.losses for row in TWO.at(0.0).rows.values() if row.losses}
    assert set(found) == {"fixed-3", "default"}
    assert found["fixed-3"]["chat"].high < 1.0
    assert found["default"]["chat"].high == 1.0  # in one turn it was as fast


def test_the_text_says_where_plain_decoding_wins():
    """In words, with the figures, and each kind of text in the table."""
    said = text.as_text(TWO, 100)
    assert "greedy: the default is faster here on some texts: 1.03x (0.95-1.12x) plain" in said
    assert "fixed-3 is slower than plain decoding on chat 0.56x\n" in said
    assert "default is faster than plain decoding on code 1.25x" in said
    assert "default is slower than plain decoding on chat 0.95x (not in every turn)" in said
    assert "server is slower" not in said
    rows = [line.split() for line in said.splitlines()]
    assert ["code", "2.00", "1.25", "10.00"] in rows
    assert "|" in said.partition("| is plain decoding")[2]


def test_what_was_not_measured_is_nobodys():
    """An interrupted bench has kinds of text that it saw at one temperature only."""
    found = results({(0, "chat"): {"plain": 1.0, "x": 0.5}})
    found.samples += [sample(method, "code", 1.0, temperature=0.7) for method in ("plain", "x")]
    assert found.at(0.0).plain_wins == []
    assert found.at(0.7).plain_wins == ["code"]
    assert "chat" not in text.as_text(found).partition("== temperature 0.7 ==")[2]


def test_a_tie_is_plain_decodings():
    """Drafting that gains nothing is no reason to draft; but it is no loss either."""
    tie = results({(0, "chat"): {"plain": 1.0, "default": 1.0}})
    assert tie.at(0.0).plain_wins == ["chat"]
    assert tie.at(0.0).rows["default"].losses == {}


def verdict(found):
    return "\n".join(text.verdict(found.at(0.0)))


def test_wins_everywhere_and_nowhere():
    """The two other things there are to say."""
    lost = results({(k, "chat"): {"plain": 1.0, "default": 1.25} for k in range(3)})
    assert "the default is slower here: 0.80x plain decoding, measured over 3" in verdict(lost)
    everywhere = {(k, name): {"plain": 1.0, "x": 1.25 + k} for k, name in enumerate("abc")}
    said = verdict(results(everywhere))
    assert "x is slower than plain decoding on every kind of text: from c 0.31x to a 0.80x" in said
    alone = text.as_text(results({(0, "chat"): {"plain": 1.0}}))
    assert "greedy: no method of drafting was measured" in alone
    won = results({(k, "chat"): {"plain": 1.0, "default": 0.5} for k in range(3)})
    assert "the default is faster here: 2.00x" in verdict(won)
    assert "slower" not in verdict(won)


def test_a_busy_machine_is_noticed():
    """Plain decoding that is sometimes twice as fast says that something else ran."""
    seconds = [(1.0, 1.3), (2.0, 1.9), (1.0, 0.9), (2.0, 1.8)]
    busy = results({(k, "a"): {"plain": one, "x": x} for k, (one, x) in enumerate(seconds)})
    warning, headline, *rest = verdict(busy).splitlines()
    assert "an unsteady machine: plain decoding alone ran at 5.0 to 10.0" in warning
    assert "x has no verdict: " in headline
    assert "changed 2.0-fold" in headline
    assert rest == []  # nor of any kind of text
    calm = results({(0, "a"): {"plain": 1.0, "x": 1.0}, (1, "a"): {"plain": 1.2, "x": 2.0}})
    assert "unsteady" not in verdict(calm)


def test_many_ways_go_over_several_tables():
    """No line is wider than the terminal, and no method is left out."""
    names = ["plain", *(f"fixed-{k}" for k in range(1, 13))]
    said = text.as_text(results({(0, "chat"): dict.fromkeys(names, 1.0)}), 80)
    tables = said.partition("tok/s")[0]
    assert max(map(len, tables.splitlines())) <= 80
    assert all(f" {name} " in tables.replace("\n", " \n ") for name in names[1:])


def test_bars_with_a_mark():
    """The line stands at its value, in bars and behind them."""
    one, other = bars({"a": 0.5, "b": 2.0}, 2.0, mark=1.0).splitlines()
    assert one.index("|") == other.index("|")
    assert one.index("|") - one.index("█") == 24
    assert "|" not in bars({"a": 0.5}, 2.0)


def test_the_figures_of_the_json_object():
    """Unknown is null, never zero."""
    found = TWO.as_dict()
    json.dumps(found)
    rows = {row["method"]: row for row in found["results"]}
    assert rows["server"]["peer"]
    assert rows["server"]["accepted_share"] is None
    assert rows["fixed-3"]["ratio_by_domain"]["chat"] == {
        "median": 0.5625, "low": 0.5, "high": 0.625, "turns": 2,
    }  # fmt: skip
    assert rows["plain"]["controller_share"] == pytest.approx(0.1)
    assert found["plain_wins"] == [{"temperature": 0.0, "domain": "chat"}]
    assert [loss["in_every_turn"] for loss in found["slower_than_plain"]] == [True, False]


def test_prompts_one_of_each_kind_after_the_other():
    """So that a bench that is interrupted has seen every kind of text; the same prompt once."""
    chosen = choose_prompts(None, [], 2)
    kinds = [prompt.domain for prompt in chosen]
    assert len(set(kinds)) == 8
    assert kinds[:8] == kinds[8:]
    everything = choose_prompts(None, [], 0)
    assert all(one != other for one, other in itertools.combinations(everything, 2))
    assert [each.domain for each in choose_prompts(None, ["maths", "maths"], 1)] == ["maths"]
    with pytest.raises(UsageError, match=r"poetry.*chat, code"):
        choose_prompts(None, ["poetry"], 1)


def test_temperatures_are_both_unless_one_is_given():
    """`--temp` is meant; the default of a setting is not."""
    assert make_plan(Settings()).temperatures == (0.0, 0.7)
    assert make_plan(Settings(), quick=True).temperatures == (0.0,)
    given = Settings.model_validate({"sampling": {"temperature": 0.8}})
    assert make_plan(given, quick=True).temperatures == (0.8,)


def test_a_mistyped_method_is_refused_before_models_are_loaded():
    """With the one that was meant."""
    with pytest.raises(UsageError, match=r"'defalt'\. Did you mean default"):
        make_plan(Settings(), methods=("plain", "defalt"))
    assert make_plan(Settings(), methods=("yours", "block", "optimal")).methods
