"""Which drafts fit a target, and what is expected of them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dspark_gguf.catalog import suggest as catalog
from dspark_gguf.catalog.suggest import Candidate, _estimated, as_text, make_draft
from dspark_gguf.engine.compatible import why_incompatible
from dspark_gguf.engine.gguf import read_header, read_tokens
from dspark_gguf.errors import ModelError, UsageError
from dspark_gguf.learned_costs import LearnedCosts
from dspark_gguf.naming import family_of
from dspark_gguf.schedule.expected import expected_ranges
from dspark_gguf.speedup import Speedup
from tests.tiny_dflash import write_dflash
from tests.tiny_gguf import Tiny, write_llama


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, ""),
        ({"padding": 128}, ""),
        ({"changed": ((2, "other"),)}, ""),  # the few special tokens before 5 may differ
        ({"padding": 129}, "392 tokens, not 263"),
        ({"changed": ((100, "other"),)}, "token 100 is 'other', not 'd'"),
        ({"add_bos": True}, "first token 260, not none"),
        ({"pooling": True}, "an embedding or encoder model (llama)"),
    ],
)
def test_headers_say_whether_it_fits(tiny_files, tmp_path, changes, problem):
    """The rules of the loaded pair, before anything is loaded."""
    draft = write_llama(tmp_path / "d.gguf", Tiny(**changes))
    assert why_incompatible(read_header(tiny_files.target), read_header(draft)) == problem


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("unsloth/Qwen3-4B-Instruct-2507-GGUF:Q4_K_M", ("qwen3", "4b")),
        ("Qwen3-4B-Q8_0.gguf", ("qwen3", "4b")),
        ("bartowski/Meta-Llama-3.1-8B-Instruct-GGUF:Q4_K_M", ("llama-3.1", "8b")),
        ("Qwen2.5-Coder-32B-Instruct-UD-IQ4_XS.gguf", ("qwen2.5-coder", "32b")),
        ("Qwen3.6-35B-A3B", ("qwen3.6", "35b-a3b")),
        ("gemma-4-12b-it-qat-Q4_0.gguf", ("gemma-4", "12b")),
        ("SmolLM2 135M Instruct", ("smollm2", "135m")),
    ],
)
def test_family_and_size_of_a_name(name, family):
    """Whoever quantized it, and however."""
    assert family_of(name) == family


def test_candidates(tiny_files, model_folder):
    """Of the list: block drafts for this very model, plain ones for its family; all that fits."""
    target = model_folder / "Qwen3-8B-Q8_0.gguf"
    shutil.copy(tiny_files.wide, target)
    shutil.copy(tiny_files.draft, model_folder / "small.gguf")
    write_llama(model_folder / "other.gguf", Tiny(padding=200))
    shutil.copy(tiny_files.text, model_folder / "broken.gguf")
    shutil.copy(tiny_files.wide, model_folder / "as-large.gguf")
    skipped = []
    found = {each.draft: each for each in catalog.candidates(read_header(target), skipped)}
    # The sizes of the list are those of real models: larger than this tiny target.
    assert list(found) == [
        "deepseek-ai/dspark_qwen3_8b_block7",
        str(model_folder / "small.gguf"),
        next(name for name in found if "as-Q2_K" in name),
        str(model_folder / "other.gguf"),
    ]
    assert found[str(model_folder / "other.gguf")].kind == "foreign"
    [line] = skipped
    assert "broken.gguf" in line


def test_a_listed_draft_that_is_here(tiny_files, model_folder):
    """It is measured instead of estimated, and its vocabulary is known to fit."""
    target = model_folder / "Qwen3-14B-Q4_0.gguf"
    shutil.copy(tiny_files.wide, target)
    snapshot = model_folder.parent / "hub/models--Qwen--Qwen3-0.6B-GGUF/snapshots/0123"
    snapshot.mkdir(parents=True)
    shutil.copy(tiny_files.draft, snapshot / "Qwen3-0.6B-Q8_0.gguf")
    found = catalog.candidates(read_header(target), [])
    [here] = [each for each in found if each.draft == "Qwen/Qwen3-0.6B-GGUF:Q8_0"]
    assert here.path == snapshot / "Qwen3-0.6B-Q8_0.gguf"
    # The same file is in the cache: not twice.
    assert [each.path for each in found].count(here.path) == 1
    assert not [each for each in found if each.kind == "dspark"]  # those are for 4B and 8B


def costs_of(seconds):
    costs = LearnedCosts()
    for rows, taken in enumerate(seconds, 1):
        costs.add_pass(rows, taken)
    return costs


@pytest.mark.parametrize("kind", ["plain", "dspark"])
def test_an_estimate_is_in_proportion_to_the_sizes(kind):
    """A draft of a tenth of the size costs a tenth of a pass: once a token, or once a block."""
    costs = costs_of([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7])
    found = _estimated(Candidate("d", "pair p", kind, 100), costs, 1000)
    steps = [0.1 * (k + 1) if kind == "plain" else 0.1 for k in range(7)]
    wanted = expected_ranges(costs.target_seconds[:8], steps, kind)
    assert found.speedup.basis == "estimated"
    for name, both in wanted.items():
        assert found.speedup.kinds[name] == pytest.approx(both, rel=0.05)
    dearer = _estimated(Candidate("d", "pair p", kind, 100), costs, 1000, over=3.0)
    assert dearer.speedup.typical < found.speedup.typical
    unknown = _estimated(Candidate("d", "pair p", kind, None), costs, 1000)
    assert (unknown.speedup, unknown.problem) == (None, "size not known")


@pytest.mark.parametrize(
    ("best", "advice"),
    [
        (Candidate("a b.gguf", "llama.cpp", "plain", 1, Path("x")), "-d 'a b.gguf'"),
        (Candidate("o/r:Q8_0", "pair p", "plain", 1, None, "dspark-gguf pull o/r:Q8_0"),
         "get the best:\n    dspark-gguf pull o/r:Q8_0\n"
         "use it:\n    dspark-gguf chat -m t -d o/r:Q8_0"),
        (Candidate("x", "made from the target", "plain", 1, None, "--make-draft Q2_K"),
         "dspark-gguf suggest -m t --make-draft Q2_K"),
    ],
)  # fmt: skip
def test_what_to_do_next(best, advice):
    """The best one that pays; none of them where none does."""
    kinds = {"code": (1.4, 2.1), "chat": (1.0, 1.2)}
    pays = replace(best, speedup=Speedup("expected", 1.4, 1.0, 2.1, kinds=kinds))
    text = as_text("t", [pays])
    assert "code 1.4-2.1x, chat 1.0-1.2x (expected)" in text
    assert advice in text
    not_paying = replace(best, speedup=Speedup("measured", 1.0, 1.0, 1.04))
    assert "none of them pays" in as_text("t", [not_paying])
    unclear = replace(best, speedup=Speedup("measured", 2.0, 1.0, 3.0, doubt="it is too loud"))
    assert "no verdict: it is too loud" in as_text("t", [unclear])
    assert "no draft for t" in as_text("t", [])


def test_suggest(tiny_files, model_folder, dspark):
    """A file is measured, what is to be made is estimated; the best comes first."""
    shutil.copy(tiny_files.draft, model_folder / "small.gguf")
    words = ["suggest", "-m", str(tiny_files.wide), "--no-learn"]
    done = dspark(*words, "--json")
    assert done.exit_code == 0, done.stderr
    rows = {row["origin"]: row for row in json.loads(done.stdout)}
    assert set(rows) == {"llama.cpp", "made from the target"}
    assert rows["llama.cpp"]["speedup"]["basis"] == "expected"
    assert rows["made from the target"]["speedup"]["basis"] == "estimated"
    text = dspark(*words).stdout
    assert "times plain decoding" in text


def test_a_recurrent_target(tiny_files, model_folder, dspark):
    """A draft is measured for it too."""
    words = ["-m", str(tiny_files.mamba), "-d", str(tiny_files.draft), "--no-learn"]
    done = dspark("suggest", *words)
    assert done.exit_code == 0, done.stderr
    assert "expected" in done.stdout


def test_those_that_pay_come_first_and_files_before_estimates():
    """A measured gain beats a larger one that is only estimated."""

    def draft(name, typical, path=None, doubt=""):
        speedup = Speedup("estimated", typical, typical, typical, doubt=doubt)
        return Candidate(name, "x", "plain", 1, path, speedup=speedup)

    here, slow = draft("here", 1.3, Path("x")), draft("slow", 1.0, Path("y"))
    far, unclear = draft("far", 1.8), draft("unclear", 3.0, Path("z"), "busy")
    unknown = Candidate("unknown", "x", "plain", None)
    found = sorted([unknown, slow, unclear, far, here], key=catalog._rank)
    assert [each.draft for each in found] == ["here", "far", "unclear", "slow", "unknown"]


def test_a_block_draft_is_no_target(tmp_path, model_folder):
    """It cannot be quantized into a draft of itself."""
    block = write_dflash(tmp_path / "block.gguf")
    with pytest.raises(ModelError, match="is a draft, not a target"):
        make_draft(block, "Q2_K", lambda line: None)


def test_a_draft_as_large_as_its_target_is_not_made(demo_files, model_folder):
    """Nor one of which more was made than there is."""
    with pytest.raises(UsageError, match=r"as Q8_0, .* too much for a draft. Name a lower"):
        make_draft(demo_files[1], "Q8_0", lambda line: None)


def test_heads_are_named_as_elsewhere(tiny_files, dspark):
    """`-d mtp` is no file: a target without heads says so."""
    done = dspark("suggest", "-m", tiny_files.target, "-d", "mtp")
    assert done.exit_code == 1
    assert "no prediction heads" in done.stderr


def test_a_split_model(tiny_files, tmp_path, dspark):
    """Its header is that of the whole; it generates; only its first part names it."""
    write_llama(tmp_path / "m.gguf", Tiny(split=8))
    first, second, third = sorted(tmp_path.glob("m-*.gguf"))
    whole, parts = read_header(tiny_files.target), read_header(first)
    assert parts.tensors.keys() == whole.tensors.keys()
    assert parts.parameters == whole.parameters
    assert read_tokens(first) == read_tokens(tiny_files.target)
    words = ["run", "-n", "8", "--temp", "0", "--no-learn", "abc", "-m"]
    answers = [dspark(*words, str(path)).stdout for path in (tiny_files.target, first)]
    assert answers[0] == answers[1] != ""
    with pytest.raises(UsageError, match=f"not the first part .* {first.name}"):
        read_header(second)
    third.unlink()
    with pytest.raises(ModelError, match=f"{third.name} is missing"):
        read_header(first)
