"""Downloads, against a hub on this machine: `pull`, and -m with a name."""

from __future__ import annotations

import hashlib
import json
import signal
from pathlib import Path
from threading import Event

import pytest

from dspark_gguf import hub
from dspark_gguf.errors import ResourceError
from tests.children import ENDING, PATIENCE, run_python, started
from tests.fake_hub import TOKEN, serving

TARGET_REPO, DRAFT_REPO = "Qwen/Qwen3-8B-GGUF", "Qwen/Qwen3-0.6B-GGUF"
#: huggingface_hub writes what it gets in pieces of 10 MiB.
PIECE = 10 * 1024 * 1024


@pytest.fixture
def pair_hub(tiny_files):
    """The repositories of the pair qwen3-8b, with tiny models in them."""
    target = {
        "Qwen3-8B-Q4_K_M.gguf": tiny_files.target,
        "Qwen3-8B-Q8_0.gguf": tiny_files.wide,
        "mmproj-Q4_0.gguf": tiny_files.wide,
    }
    repositories = {TARGET_REPO: target, DRAFT_REPO: {"Qwen3-0.6B-Q8_0.gguf": tiny_files.draft}}
    with serving(repositories) as there:
        yield there


def test_pull_a_pair(pair_hub, tiny_files, tmp_path):
    """Both files, whole, once; their paths on stdout, everything else on stderr."""
    done = pair_hub.run(tmp_path, "pull", "qwen3-8b")
    assert done.returncode == 0, done.stderr
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert [path.name for path in paths] == ["Qwen3-8B-Q4_K_M.gguf", "Qwen3-0.6B-Q8_0.gguf"]
    assert [path.read_bytes() for path in paths] == [
        file.read_bytes() for file in (tiny_files.target, tiny_files.draft)
    ]
    assert f"downloading {TARGET_REPO}:Qwen3-8B-Q4_K_M.gguf" in done.stderr
    assert "dspark-gguf chat -m qwen3-8b" in done.stderr
    again = pair_hub.run(tmp_path, "pull", "qwen3-8b")
    assert again.stdout == done.stdout
    assert "downloading" not in again.stderr
    assert [(name, first) for name, first, _ in pair_hub.sent] == [(p.name, 0) for p in paths]
    assert not list(tmp_path.rglob("*.incomplete"))


def test_a_pair_by_name(pair_hub, tmp_path):
    """Downloaded when it is first used, with a line that says so; then no hub is needed."""
    words = ("run", "-v", "-m", "qwen3-8b", "-n", "4", "--temp", "0", "--json", "abc")
    first = pair_hub.run(tmp_path, *words)
    assert first.returncode == 0, first.stderr
    assert first.stderr.count("downloading") == 2
    assert "draft Qwen3-0.6B-Q8_0 on CPU" in first.stderr
    asked = len(pair_hub.sent)
    second = pair_hub.run(tmp_path, *words, HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert second.returncode == 0, second.stderr
    assert json.loads(second.stdout)["text"] == json.loads(first.stdout)["text"]
    assert len(pair_hub.sent) == asked


def test_a_llama_by_name(pair_hub, tmp_path):
    """The drop-in takes the same names: a pair brings its draft, a model finds that of its pair."""
    program = """
from dspark_gguf import DSparkLlama
options = {"n_ctx": 256, "verbose": False}
model = "Qwen/Qwen3-8B-GGUF:Q4_K_M"
for names in (["qwen3-8b"], [model], [model, "none"]):
    llama = DSparkLlama(names[0], draft=names[1] if names[1:] else None, **options)
    print(type(llama.drafter).__name__, llama.model_path.rpartition("/")[2])
    llama.close()
"""
    done = run_python("-c", program, env=pair_hub.environment(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "Cascade Qwen3-8B-Q4_K_M.gguf", "Cascade Qwen3-8B-Q4_K_M.gguf",
        "LookupDrafter Qwen3-8B-Q4_K_M.gguf",
    ]  # fmt: skip


def test_another_draft_for_a_pair(pair_hub, tiny_files, tmp_path):
    """-d overrides: the pair's own is not even downloaded."""
    done = pair_hub.run(
        tmp_path, "run", "-m", "qwen3-8b", "-d", tiny_files.target, "-n", "2", "abc"
    )
    assert done.returncode == 0, done.stderr
    assert [name for name, _, _ in pair_hub.sent] == ["Qwen3-8B-Q4_K_M.gguf"]


def test_inspect_a_model_of_the_hub(pair_hub, tmp_path):
    """Wherever a model is asked for, org/repo:quant is one."""
    done = pair_hub.run(tmp_path, "inspect", f"hf.co/{TARGET_REPO}:q8_0", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["file"].endswith("Qwen3-8B-Q8_0.gguf")


@pytest.fixture
def large(tmp_path):
    """Two pieces and a half, nothing of it alike."""
    path = tmp_path / "large-Q8_0.gguf"
    path.write_bytes(b"GGUF" + bytes(range(251)) * (5 * PIECE // 2 // 251))
    return path


def test_a_broken_connection(large, tmp_path):
    """The rest is asked for, and only the rest is sent."""
    size = large.stat().st_size
    with serving({"org/m-GGUF": {large.name: large}}, cuts=[2 * PIECE + 100]) as there:
        done = there.run(tmp_path / "home", "pull", "org/m-GGUF:Q8_0")
        assert done.returncode == 0, done.stderr
        assert there.sent == [
            (large.name, 0, 2 * PIECE + 100),
            (large.name, 2 * PIECE, size - 2 * PIECE),
        ]
    assert Path(done.stdout.strip()).read_bytes() == large.read_bytes()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows")
@pytest.mark.parametrize("end", ["SIGINT", "SIGKILL"])
def test_an_interrupted_download(large, tmp_path, end):
    """Ctrl-C, or worse: what came of the file is never taken for the model."""
    home, size = tmp_path / "home", large.stat().st_size
    words = ("pull", "org/m-GGUF")
    with serving({"org/m-GGUF": {large.name: large}}, stalls=[2 * PIECE + 100]) as there:
        with started(*words, env=there.environment(home), text=True) as first:
            assert there.stalled.wait(PATIENCE)
            _until_written(home, 2 * PIECE)
            first.send_signal(getattr(signal, end))
            _, said = first.communicate(timeout=ENDING)
        if end == "SIGINT":
            assert first.returncode == 130
            assert "complete files are kept" in said
            assert not list(home.rglob("*.incomplete"))
        done = there.run(home, *words)
        assert done.returncode == 0, done.stderr
        assert there.sent == [(large.name, 0, size)]
    assert Path(done.stdout.strip()).read_bytes() == large.read_bytes()


def _until_written(home, size):
    """Wait until the process has written what it got."""
    for _ in range(600):
        if any(path.stat().st_size >= size for path in home.rglob("*.incomplete")):
            return
        Event().wait(0.1)
    raise AssertionError("nothing was written")


@pytest.mark.parametrize("part", [b"?" * PIECE, None])
def test_a_damaged_download(large, tmp_path, part):
    """The wire spoils it, or an older version left a part of it: never taken for the model."""
    home, digest = tmp_path / "home", hashlib.sha256(large.read_bytes()).hexdigest()
    blobs = home / "hub/models--org--m-GGUF/blobs"
    if part:
        blobs.mkdir(parents=True)
        (blobs / f"{digest}.incomplete").write_bytes(part)
    with serving({"org/m-GGUF": {large.name: large}}, spoils=part is None) as there:
        done = there.run(home, "pull", "org/m-GGUF")
        if not part:
            assert (done.returncode, done.stdout) == (1, "")
            assert digest in done.stderr
            assert "from the start" in done.stderr
            assert not list(blobs.iterdir())
            done = there.run(home, "pull", "org/m-GGUF")
        assert done.returncode == 0, done.stderr
        assert there.sent[-1] == (large.name, 0, large.stat().st_size)
    assert Path(done.stdout.strip()).read_bytes() == large.read_bytes()


ALONE = [
    """
import huggingface_hub.file_download as library
library.are_symlinks_supported = lambda *_: False
from dspark_gguf.cli import main; main(["pull", "org/m-GGUF"])
""",
    *(
        f"""
import sys
from dspark_gguf import errors, hub
try:
    print(hub.download("org/m-GGUF", "*.gguf"{place}))
except errors.DSparkError as error:
    sys.exit(str(error))
"""
        for place in ("", ", local_dir='here'")
    ),
]


@pytest.mark.parametrize("program", ALONE)
def test_a_damaged_download_of_huggingface_hub(large, tmp_path, monkeypatch, program):
    """Without links in the cache (Windows), and for `from_pretrained`: the same check."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(hub.__file__).parents[1]))
    home = tmp_path / "home"
    with serving({"org/m-GGUF": {large.name: large}}, spoils=1) as there:
        results = [run_python("-c", program, env=there.environment(home)) for _ in range(2)]
    assert [done.returncode for done in results] == [1, 0], results[1].stderr
    assert "from the start" in results[0].stderr
    assert (tmp_path / results[1].stdout.strip()).read_bytes() == large.read_bytes()


def test_a_dead_link_in_the_cache(pair_hub, tiny_files, tmp_path):
    """Its blob was cleaned away: the model counts as missing, and is downloaded again."""
    words = ("run", "-m", f"{DRAFT_REPO}:Q8_0", "-n", "1", "abc")
    path = Path(pair_hub.run(tmp_path, "pull", f"{DRAFT_REPO}:Q8_0").stdout.strip())
    path.resolve().unlink()
    done = pair_hub.run(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == tiny_files.draft.read_bytes()


def test_a_hub_that_goes_away(large, tmp_path):
    """One message, no traceback, no part of a file left."""
    with serving({"org/m-GGUF": {large.name: large}}, cuts=[100] * 9) as there:
        done = there.run(tmp_path / "home", "pull", "org/m-GGUF")
    assert done.returncode == 1
    assert "cannot reach the hub for org/m-GGUF:" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "home").rglob("*.incomplete"))


def test_gated_and_missing(pair_hub, tmp_path):
    """What to do about it, in words; with a token it works, which no other host is told."""
    pair_hub.gated.add(TARGET_REPO)
    refused = pair_hub.run(tmp_path, "pull", TARGET_REPO + ":Q4_K_M")
    assert refused.returncode == 1
    assert "Accept its licence" in refused.stderr
    assert "HF_TOKEN" in refused.stderr
    done = pair_hub.run(tmp_path, "pull", TARGET_REPO + ":Q4_K_M", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert pair_hub.told == [None]
    missing = pair_hub.run(tmp_path, "pull", "org/nothing:Q4_0")
    assert missing.returncode == 2
    assert "the hub has no repository for org/nothing:Q4_0, or it is private" in missing.stderr
    wrong = pair_hub.run(tmp_path, "pull", TARGET_REPO + ":Q5_K_M", HF_TOKEN=TOKEN)
    assert wrong.returncode == 2
    assert "no model of that name: it has Q4_K_M, Q8_0" in wrong.stderr
    for each in (refused, missing, wrong):
        assert "Traceback" not in each.stderr
        assert each.stdout == ""


def test_offline_and_unreachable(tmp_path):
    """Both are said, and told apart."""
    with serving({}) as there:
        offline = there.run(tmp_path, "run", "-m", "org/m:Q4_0", "hi", HF_HUB_OFFLINE="1")
        gone = there.run(tmp_path, "pull", "org/m:Q4_0", HF_ENDPOINT="http://127.0.0.1:9")
    assert (offline.returncode, gone.returncode) == (1, 1)
    assert "HF_HUB_OFFLINE is set" in offline.stderr
    assert "Run it again when you are online" in gone.stderr
    assert "Traceback" not in offline.stderr + gone.stderr


def test_pull_offline_what_is_there(pair_hub, tmp_path):
    """Offline is no error for what is in the cache."""
    first = pair_hub.run(tmp_path, "pull", "qwen3-8b")
    second = pair_hub.run(tmp_path, "pull", "qwen3-8b", HF_HUB_OFFLINE="1")
    assert (second.returncode, second.stdout) == (0, first.stdout)


def test_unverified_and_incomplete_pairs(tiny_files, tmp_path):
    """The first is said before a byte comes; of the second nothing is downloaded."""
    repositories = {
        "bartowski/Meta-Llama-3.1-8B-Instruct-GGUF": {"m-Q4_K_M.gguf": tiny_files.target},
        "bartowski/Llama-3.2-1B-Instruct-GGUF": {"d-Q4_K_M.gguf": tiny_files.draft},
        TARGET_REPO: {"m-Q4_K_M.gguf": tiny_files.target},
        "deepseek-ai/dspark_qwen3_8b_block7": {"model.safetensors": tiny_files.draft},
    }
    with serving(repositories) as there:
        done = there.run(tmp_path, "pull", "llama-3.1-8b")
        assert done.returncode == 0
        assert done.stderr.index("unverified") < done.stderr.index("downloading")
        sent = len(there.sent)
        unconverted = there.run(tmp_path, "pull", "qwen3-8b-dspark")
        assert unconverted.returncode == 2
        assert "has no GGUF model" in unconverted.stderr
        nameless = there.run(tmp_path, "run", "-m", "qwen2.5-7b", "hi")
        assert nameless.returncode == 2
        assert "list has only the name of the target, Qwen2.5-7B-Instruct Q4_K_M" in nameless.stderr
        assert len(there.sent) == sent


def test_a_full_disk(tmp_path, monkeypatch):
    """Refused before the first byte."""
    monkeypatch.setattr(hub, "cache_folder", lambda: tmp_path / "not" / "yet")
    hub.require_room([hub.Download("org/m", {"m.gguf": 1})])
    with pytest.raises(ResourceError, match=r"takes 1000000000\.0 GB"):
        hub.require_room([hub.Download("org/m", {"m.gguf": 10**18})])


def test_what_is_there_needs_no_room(tmp_path, monkeypatch):
    """`pull` again, on a disk that is full by now."""
    monkeypatch.setattr(hub, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, file: "/there")
    hub.require_room([hub.Download("org/m", {"m.gguf": 10**18})])


def test_a_file_that_changed_on_the_hub(large, tmp_path, monkeypatch):
    """`from_pretrained` into a folder that has the old one: the new one is checked too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(hub.__file__).parents[1]))
    here = tmp_path / "here"
    here.mkdir()
    (here / large.name).write_bytes(b"old")
    with serving({"org/m-GGUF": {large.name: large}}, spoils=1) as there:
        done = run_python("-c", ALONE[2], env=there.environment(tmp_path / "home"))
    assert done.returncode == 1
    assert "from the start" in done.stderr
