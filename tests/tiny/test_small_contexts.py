"""Contexts that a few rows fill: measuring adapts to them, and commands work as far as they go."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from dspark_gguf.cli import main
from dspark_gguf.engine.timing import interleave, quick_profile
from dspark_gguf.learned_costs import LearnedCosts
from dspark_gguf.testing import TableModel, random_rows
from tests.doctor_report import told
from tests.tiny_dflash import write_dflash


@pytest.mark.parametrize("n_ctx", [1, 2, 3, 4, 16, 32, 64, 81, 128])
@pytest.mark.parametrize("draft_ctx", [None, 1, 3, 16, 80, 128])
def test_the_quick_profile_fits_in(n_ctx, draft_ctx):
    """It measures as many rows and looks as there is room for, and leaves the caches empty."""
    target = TableModel(random_rows(50), n_ctx)
    draft = None if draft_ctx is None else TableModel(random_rows(50), draft_ctx)
    costs = LearnedCosts()
    quick_profile(target, draft, costs, 10.0, 64)
    assert 1 in costs.measured_rows
    assert max(costs.measured_rows) <= min(65, n_ctx)
    if n_ctx >= 3:
        assert costs.covers(64, drafts=draft is not None)
    assert target.length == 0


@pytest.mark.parametrize("n_ctx", [4, 16, 32, 64])
@pytest.mark.parametrize("kind", ["copies", "draft", "block"])
def test_commands(tiny_files, tmp_path, n_ctx, kind):
    """`run` says what fits and that the context is full; `chat` and `profile` work or say why."""

    def dspark(command, *more, stdin=""):
        return CliRunner().invoke(main, [str(word) for word in (command, *words, *more)], stdin)

    words = ["-m", tiny_files.target, "-c", n_ctx, "--no-learn"]
    if kind == "draft":
        words += ["-d", tiny_files.draft]
    elif kind == "block":
        words += ["-d", write_dflash(tmp_path / "dflash.gguf")]
    ran = dspark("run", "-n", 60, "--temperature", 0, "--ignore-eos", "--raw", "hi")
    assert ran.exit_code == 0, ran.output
    assert ("the context is full" in ran.output) == (n_ctx < 62)
    chatted = dspark("chat", "-n", 4, stdin="hi\n")
    assert ("a prompt of 21 tokens leaves no room" in chatted.output) == (n_ctx < 22)
    assert (" tok/s" in chatted.output) == (n_ctx >= 22)
    chatted = dspark("chat", "-n", 4, stdin="hi\n" * 9)
    # The last message is short: it is the others that fill the context.
    assert ("/reset, or use --context-shift" in chatted.output) == (n_ctx >= 22)
    profiled = dspark("profile")
    if n_ctx > 18:
        assert profiled.exit_code == 0, profiled.output
        assert "rows" in profiled.output
    else:
        assert profiled.exit_code == 4
        assert (
            f"a context of {n_ctx} tokens is too small for a pass of 17 rows. Use fewer --rows"
            in profiled.output
        )


def test_works_take_turns():
    """One after the other, turn by turn; when the time is up as many as were asked for."""
    done = []
    work = {name: lambda name=name: done.append(name) or 1.0 for name in "abc"}
    assert interleave(work, 2) == {"a": [1.0] * 2, "b": [1.0] * 2, "c": [1.0] * 2}
    assert "".join(done) == "abcabc"
    assert interleave(work, 9, budget=-1.0, least=4) == {"a": [1.0] * 2, "b": [1.0], "c": [1.0]}


@pytest.mark.usefixtures("quiet_machine")
@pytest.mark.parametrize(("n_ctx", "left_out"), [(4, 3), (16, 3), (24, 2), (64, 1), (80, 0)])
def test_the_doctor(dspark, tiny_files, n_ctx, left_out):
    """What has no room is not compared, which is no fault of the machine."""
    done = dspark("doctor", "-m", tiny_files.target, "-c", n_ctx, "--no-learn", "--json")
    sections = told(done)
    assert done.exit_code == 0, sections
    said = [sections[name]["text"] for name in ("logits", "attention", "threads")]
    assert [f"and {n_ctx} are set" in text for text in said].count(True) == left_out, said
