"""`dspark-gguf bench` as a user types it, on a tiny pair whose draft often agrees."""

from __future__ import annotations

import json
import os
import signal
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from dspark_gguf.cli import main
from dspark_gguf.measure.bench.run import peak_bytes
from dspark_gguf.measure.bench.turns import OwnProgram
from tests.tiny_gguf import Tiny, write_llama

SHORT = ["bench", "--tokens", 8, "--per-domain", 1, "-c", 2048]
SMALL = [*SHORT, "--domains", "maths,code", "--methods", "fixed-3,default", "--temp", 0]

FIGURE = {"median": float, "low": float, "high": float, "turns": int}
ROW = {
    "method": str, "temperature": float, "peer": bool, "ratio_by_domain": dict,
    "tokens_per_second": FIGURE, "first_token_seconds": FIGURE, "tokens_per_round": float,
    "accepted_share": (float, type(None)), "plain_rounds_share": float, "controller_share": float,
    "controller_ms_per_round": float, "accepted_by_position": list, "drafted_by_position": list,
    "seconds": dict.fromkeys(("total", "prefill", "target", "draft", "controller"), float),
    "tokens": int, "rounds": int,
}  # fmt: skip
SCHEMA = {
    "bench": int, "version": str, "llama_cpp": str, "machine": dict,
    "target": {"name": str, "bytes": int, "place": str},
    "draft": {"name": str, "bytes": int, "place": str, "kind": str},
    "settings": {"tokens": int, "repeats": int, "temperatures": list, "prompts": int,
                 "threads": int, "sampling": dict},
    "methods": dict, "turns": {"measured": int, "wanted": int}, "interrupted": bool,
    "peak_memory_bytes": {"ours": int, "all": int},
    "date": str, "command": str,
    "results": list, "speedup": list, "plain_wins": list, "slower_than_plain": list,
}  # fmt: skip


def require(schema, value, place="the object"):
    """Exactly these keys, with values of these types."""
    if not isinstance(schema, dict):
        assert isinstance(value, schema), f"{place}: {value!r}"
        return
    assert set(value) == set(schema), place
    for key, inner in schema.items():
        require(inner, value[key], f"{place}.{key}")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A target and a draft with room for the longest prompt: a token is a letter."""
    folder = tmp_path_factory.mktemp("bench")
    target = write_llama(folder / "tiny-target.gguf", Tiny(context=4096))
    return target, write_llama(folder / "tiny-draft.gguf", Tiny(context=4096, noise=0.05))


@pytest.fixture(scope="module")
def bench(pair):
    """Runs ``dspark-gguf`` with these words, and the pair."""

    def run(*words):
        models = ["-m", pair[0], "-d", pair[1]] if "-m" not in words else []
        return CliRunner().invoke(main, [str(word) for word in [*words, *models]])

    return run


@pytest.fixture(scope="module")
def once(bench):
    """One short run for all tests that only read."""
    before = peak_bytes()
    result = bench(*SMALL)
    assert result.exit_code == 0, result.output
    found = json.loads(bench(*SMALL, "--json").stdout)
    return SimpleNamespace(
        text=result.stdout,
        object=found,
        said=result.stderr,
        peaks=(before, peak_bytes()),
    )


def test_header_table_and_plot(once):
    """In this order; what each method is comes first, no progress bar off a terminal, no JSON."""
    places = [
        once.text.index(part)
        for part in ("always 3 drafts, no threshold: llama.cpp's default", "== greedy ==",
                     "x plain  ", "tok/s", "| is plain decoding", "peak memory: ")
    ]  # fmt: skip
    assert places == sorted(places)
    assert "{" not in once.text
    assert "\x1b" not in once.said + once.text
    assert "%" not in once.said.replace("up to", "")


def test_the_json_object_keeps_its_schema(once):
    """Scripts read it: no key is missing or new without a change here."""
    require(SCHEMA, once.object)
    assert [row["method"] for row in once.object["results"]] == ["plain", "fixed-3", "default"]
    for row in once.object["results"]:
        require(ROW, row)
        assert list(row["ratio_by_domain"]) == ["maths", "code"]
        for figure in row["ratio_by_domain"].values():
            require(FIGURE, figure)
    assert once.object["turns"] == {"measured": 2, "wanted": 2}


def test_the_figures_agree_with_each_other(once):
    """Plain decoding is 1 by definition; fixed drafts are always three."""
    plain, fixed, _ = once.object["results"]
    assert set(plain["ratio_by_domain"]["maths"].values()) == {1.0}
    assert plain["tokens_per_round"] == 1
    assert plain["accepted_share"] is None
    assert fixed["tokens_per_round"] > 1
    assert len(fixed["drafted_by_position"]) == 3
    assert fixed["seconds"]["draft"] > 0 == plain["seconds"]["draft"]
    assert once.peaks[0] <= once.object["peak_memory_bytes"]["ours"] <= once.peaks[1]


def test_json_alone(bench):
    """`--json`: nothing else on stdout, at both temperatures unless one is given."""
    result = bench(*SHORT, "--domains", "code", "--methods", "default", "--json")
    found = json.loads(result.stdout)
    assert found["settings"]["temperatures"] == [0.0, 0.7]
    assert [row["temperature"] for row in found["results"]] == [0.0, 0.0, 0.7, 0.7]


def test_the_old_name_of_the_option(bench):
    """`--ways`, for one version; a line says so."""
    result = bench(*SHORT, "--domains", "code", "--temp", 0, "--ways", "fixed-2", "--json")
    assert list(json.loads(result.stdout)["methods"]) == ["plain", "fixed-2"]
    assert "--ways is now called --methods" in result.stderr


def test_without_a_draft_model_copies_are_measured(bench, pair):
    """No draft, no draft's columns; the page says what it could not measure."""
    result = bench(*SHORT, "-m", pair[0], "--domains", "code", "--quick", "--json")
    found = json.loads(result.stdout)
    assert found["draft"] is None
    assert list(found["methods"]) == ["plain", "fixed-3", "default"]
    assert found["methods"]["fixed-3"].startswith("always 3 copied tokens")


def test_a_report(bench, tmp_path, monkeypatch):
    """The page, and all figures beside it."""
    for name, small in {"_ROWS": 3, "_DEPTH": 2, "_TEXTS": 2}.items():
        monkeypatch.setattr(f"dspark_gguf.measure.bench.report.{name}", small)
    result = bench(*SMALL, "-c", 160, "--report", tmp_path / "report")
    assert result.exit_code == 0, result.output
    json.loads((tmp_path / "report" / "bench.json").read_text("utf-8"))
    page = (tmp_path / "report" / "index.html").read_text("utf-8")
    assert "tiny-target" in page
    assert "<h2>Are the draft&#39;s" in page or "Are the draft's confidences true?" in page


def test_the_figures_survive_a_report_that_cannot_be_made(bench, tmp_path):
    """Its disk fills up, or the draft has no room for what the page shows of its guesses."""
    folder = tmp_path / "report"
    (folder / "index.html").mkdir(parents=True)
    result = bench(*SMALL, "-cd", 32, "--report", folder, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["turns"]["measured"] == 2
    assert "the report lacks" in result.stderr
    assert f"cannot read or write {folder / 'index.html'}" in result.stderr


def test_ctrl_c_prints_what_was_measured_so_far(bench, monkeypatch, tmp_path):
    """The turn that it broke off does not count; exit code 130."""
    original, calls = OwnProgram.answer, []

    def answer(self, task):
        calls.append(self.name)
        if len(calls) == 3 + 3 + 2:  # warm-up, a turn, and the second answer of the next
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, task)

    monkeypatch.setattr(OwnProgram, "answer", answer)
    result = bench(*SMALL, "--report", tmp_path / "report")
    assert result.exit_code == 130
    assert "interrupted: 1 of 2 turns measured" in result.stdout
    assert "== greedy ==" in result.stdout
    found = json.loads((tmp_path / "report" / "bench.json").read_text("utf-8"))
    page = (tmp_path / "report" / "index.html").read_text("utf-8")
    assert "of 2: it was stopped before its end" in page
    assert 'id="costs"' not in page
    assert found["interrupted"]
    assert found["turns"] == {"measured": 1, "wanted": 2}
    assert list(found["results"][0]["ratio_by_domain"]) == ["maths"]


def test_a_terminated_bench_ends_its_peers(bench, monkeypatch):
    """Servers that it started do not outlive it."""
    ended = []

    @contextmanager
    def peers(*_):
        try:
            yield []
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            ended.append(True)

    monkeypatch.setattr("dspark_gguf.measure.bench.run.peers", peers)
    monkeypatch.setattr("dspark_gguf.measure.bench.run.play", lambda *_: iter([]))
    assert bench(*SMALL, "--peer").exit_code == 128 + signal.SIGTERM
    assert ended == [True]


@pytest.mark.parametrize(
    ("words", "code", "got"),
    [
        (["--methods", "fastest"], 2, "unknown method of decoding"),
        (["--methods", "optmal"], 2, "Did you mean default?"),  # by its old name
        (["--domains", "poetry"], 2, "unknown domain"),
        (["--prompts", "missing.jsonl"], 2, "missing.jsonl"),
        (["--tokens", "2000"], 4, "the longest prompt and its answer"),
        (["--report", "/dev/null"], 2, "cannot write a report"),
        (["--learn"], 2, "No such option"),
    ],
)
def test_what_cannot_be_measured_is_refused(bench, words, code, got):
    """Before anything is measured; an option without a meaning here does not exist."""
    result = bench(*SMALL, *words)
    assert result.exit_code == code, result.output
    assert got in result.stderr
    assert result.stdout == ""


def test_memory_only_grows():
    """The peak of this process, in bytes."""
    before = peak_bytes()
    held = bytearray(64 * 1024**2)
    held[::4096] = b"x" * len(held[::4096])
    assert peak_bytes() >= before > 2**20
