"""`dspark-gguf bench --conversations`, on a tiny pair."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from dspark_gguf.cli import main
from dspark_gguf.errors import Cancelled
from dspark_gguf.measure.bench import conversations
from dspark_gguf.measure.bench.conversations import COPYING, Cell, as_text
from dspark_gguf.measure.bench.plan import DEFAULT, PLAIN, choose_prompts
from tests.tiny_gguf import Tiny, write_llama


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    target = write_llama(folder / "target.gguf", Tiny(context=8192))
    draft = write_llama(folder / "draft.gguf", Tiny(context=8192, noise=0.05))

    def run(*words):
        fixed = ["bench", "-m", target, "-d", draft, "-c", 8192, "--tokens", 8, "--temp", 0]
        return CliRunner().invoke(main, [*map(str, [*fixed, *words])])

    return run


def test_a_table_and_an_object(bench):
    result = bench("--conversations", "2,1", "--domains", "maths,extraction", "--repeats", 2)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.strip().splitlines()
    words = ("--conversations", "2,1", "--domains", "maths,extraction", "--json")
    cells = json.loads(bench(*words).stdout)["conversations"]
    assert [(cell["text"], cell["conversations"]) for cell in cells] == [
        ("new text", 1), ("new text", 2), ("copying", 1), ("copying", 2),
    ]  # fmt: skip
    for cell in cells:
        assert set(cell["tokens_per_second"]) == {PLAIN, DEFAULT}
        figures = cell["over_plain"]
        assert 0 < figures["low"] <= figures["median"] <= figures["high"]
    table = [line.split() for line in lines if line.startswith(("new text", "copying"))]
    assert len(table) == 4


def test_the_kinds_that_copy_are_kinds():
    domains = {prompt.domain for prompt in choose_prompts(None, (), 1)}
    assert set(COPYING) < domains


def test_ratios_are_those_of_the_same_turn():
    """A machine that becomes half as fast between two turns changes none of them."""
    cell = Cell("text", 2, {PLAIN: [10.0, 5.0, 10.0], DEFAULT: [12.0, 6.0, 11.0]})
    ratio = cell.ratio
    assert (ratio.low, ratio.median, ratio.high) == pytest.approx((1.1, 1.2, 1.2))
    one = Cell("text", 1, {PLAIN: [5.0], DEFAULT: [5.0]})
    row = as_text([one, cell]).splitlines()[-1].split()
    assert row == ["text", "2", "10.0", "2.00", "11.0", "1.20", "(1.10-1.20)"]


@pytest.mark.parametrize("words", ["0", "1,x", "-3", "65", "1.5"])
def test_what_is_no_number_of_conversations(bench, words):
    result = bench("--conversations", words)
    assert result.exit_code == 2
    assert "no list of numbers from 1 to 64" in result.stderr


def test_other_methods_are_not_compared(bench):
    result = bench("--conversations", "1,2", "--methods", "fixed-3")
    assert result.exit_code == 2
    assert "plain batching and the default alone" in result.stderr


def test_answers_too_short_to_overlap_tell_nothing(bench, tmp_path):
    """The first ends while later prompts are still read: said, below what was measured."""
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"{k} " * 300}) for k in range(12)))
    words = ("--prompts", prompts, "--per-domain", 0, "-b", 64, "-ub", 64)
    result = bench("--conversations", "1,12", *words)
    assert result.exit_code == 2
    assert "an answer of 8 tokens ended before all 12 had begun" in result.stderr
    assert result.stdout.splitlines()[-1].startswith("new text        1")


def test_ctrl_c_prints_what_was_measured_so_far(bench, monkeypatch):
    """As in the other bench: said, in the text and in the object; exit code 130."""
    original = conversations.measure

    def measure(*given):
        yield next(original(*given))
        raise Cancelled

    monkeypatch.setattr(conversations, "measure", measure)
    words = ("--conversations", "1,2", "--domains", "maths")
    result = bench(*words)
    assert result.exit_code == 130
    assert "\nnew text        1" in result.stdout
    assert "interrupted: 1 of 2 lines measured" in result.stdout
    assert json.loads(bench(*words, "--json").stdout)["interrupted"] is True
