"""Downloads, against a hub on this machine: `pull`, and -m with a name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.children import run_python
from tests.fake_hub import TOKEN, serving

TARGET_REPO, DRAFT_REPO = "Qwen/Qwen3-8B-GGUF", "Qwen/Qwen3-0.6B-GGUF"


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
from dspark_gguf import DSparkLlama, Speculation
options = {"n_ctx": 256, "verbose": False, "speculation": Speculation(learn=False)}
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


def test_a_file_of_this_machine_loads_nothing_of_the_hub(tiny_files):
    """Those libraries took a sixth of the time to start."""
    program = f"""
import sys
from dspark_gguf.cli import main
words = ["run", "-m", {str(tiny_files.target)!r}, "--spec", "off", "-n", "1", "a"]
try:
    main(words)
finally:
    print([*{{"huggingface_hub.file_download", "markdown_it"}} & {{*sys.modules}}])
"""
    done = run_python("-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n[]\n")


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


def test_a_dead_link_in_the_cache(pair_hub, tiny_files, tmp_path):
    """Its blob was cleaned away: the model counts as missing, and is downloaded again."""
    words = ("run", "-m", f"{DRAFT_REPO}:Q8_0", "-n", "1", "abc")
    path = Path(pair_hub.run(tmp_path, "pull", f"{DRAFT_REPO}:Q8_0").stdout.strip())
    path.resolve().unlink()
    done = pair_hub.run(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == tiny_files.draft.read_bytes()


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


@pytest.mark.parametrize("name", [f"{TARGET_REPO}:Q4_K_M", "qwen3-8b"])
def test_pull_what_is_no_model(pair_hub, tiny_files, tmp_path, name):
    """A file may be called .gguf and be none: nothing says that it can be used."""
    pair_hub.repositories[TARGET_REPO]["Qwen3-8B-Q4_K_M.gguf"] = tiny_files.text
    done = pair_hub.run(tmp_path, "pull", name)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Qwen3-8B-Q4_K_M.gguf is not a GGUF model: it begins with 'Once'" in done.stderr
    assert "use it" not in done.stderr
    pair_hub.repositories[TARGET_REPO]["Qwen3-8B-Q8_0.gguf"] = tiny_files.embedding
    done = pair_hub.run(tmp_path, "pull", f"{TARGET_REPO}:Q8_0")
    assert done.returncode == 0, done.stderr
    assert "note: this is an embedding or encoder model (llama)" in done.stderr
    assert "use it" not in done.stderr


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
