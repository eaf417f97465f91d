"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import site
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

#: What changes where programs look and what they say, by how its name begins: all of it belongs
#: to whoever runs the tests, or to the machine that does, not to the tests.
_PERSONAL = (
    "XDG_", "HF_", "HUGGING_FACE_", "OLLAMA_", "LLAMA_", "LLM_", "NO_COLOR", "FORCE_COLOR",
    "CLICOLOR", "TTY_", "COLUMNS", "LINES",
)  # fmt: skip
_home = tempfile.TemporaryDirectory(prefix="dspark-gguf-home-", ignore_cleanup_errors=True)


def pytest_configure():
    """No test sees or changes the user's own files; before anything is imported that looks."""
    for name in [name for name in os.environ if name.startswith(_PERSONAL)]:
        del os.environ[name]
    os.environ.setdefault("PYTHONUSERBASE", site.getuserbase())  # where packages may come from
    os.environ |= {"HOME": _home.name, "USERPROFILE": _home.name}
    for kind in ("CACHE", "DATA", "CONFIG"):
        os.environ[f"XDG_{kind}_HOME"] = str(Path(_home.name, kind.lower()))
    # llama.cpp's threads wait for each other at every step of a pass. On a few cores that have
    # other work too (other tests), small models then take up to five times longer.
    os.environ.setdefault("OMP_THREAD_LIMIT", "1")
    # A GPU adds up numbers in another order, and in one that depends on the rows of a pass. So the
    # tests run on the CPU, with a build for a GPU too, unless the variable names one.
    for maker in ("CUDA", "HIP"):
        os.environ.setdefault(f"{maker}_VISIBLE_DEVICES", "-1")


@pytest.fixture(scope="session", autouse=True)
def signals():
    """The tests run under `nohup` and in the background jobs of scripts as everywhere."""
    from tests.children import default_signals

    with default_signals():
        yield


@pytest.fixture(scope="session")
def short_profile():
    """How well a profile measures is no subject of tests: none spends two seconds on it."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("engine.pair", "dropin.llama"):
            patch.setattr(f"dspark_gguf.{module}.PROFILE_SECONDS", 0.25)
        yield


@pytest.fixture(autouse=True)
def quiet_log():
    """A command with `-v` is the last one that shows llama.cpp's log."""
    yield
    if log := sys.modules.get("dspark_gguf.engine.log"):
        log._command_log.verbose = False


@pytest.fixture(autouse=True)
def no_terminal_left():
    """A program in a terminal ends with its test."""
    from tests.children import end_terminals

    yield
    end_terminals()


@pytest.fixture(scope="session")
def demo_files():
    """The demo pair's files (target, draft), made once for the whole run."""
    from dspark_gguf.catalog.demo import demo_pair

    return demo_pair()


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory):
    """Tiny GGUFs by name: a target, a draft that often agrees, and what is not to be loaded."""
    from tests.tiny_gguf import Tiny, write_llama, write_mamba

    folder = tmp_path_factory.mktemp("tiny")
    target = write_llama(folder / "target.gguf")
    data = target.read_bytes()
    broken = {
        "truncated": data[: len(data) // 2],
        "empty": b"",
        "text": b"Once upon a time",
    }
    for name, content in broken.items():
        (folder / f"{name}.gguf").write_bytes(content)
    write_llama(folder / "draft.gguf", Tiny(noise=0.05))
    write_llama(folder / "two_heads.gguf", Tiny(heads=2))
    write_llama(folder / "wide.gguf", Tiny(width=256, layers=4))
    write_llama(folder / "embedding.gguf", Tiny(pooling=True))
    write_mamba(folder / "mamba.gguf")
    return SimpleNamespace(**{path.stem: path for path in folder.glob("*.gguf")})


@pytest.fixture
def dspark():
    """Runs `dspark-gguf` with these words."""

    from click.testing import CliRunner

    from dspark_gguf.cli import main

    def run(*words, stdin=""):
        return CliRunner().invoke(main, [str(word) for word in words], input=stdin)

    return run


@pytest.fixture
def quiet_machine(monkeypatch):
    """What else this machine does, and which GPU it has, is not what is tested."""
    from dspark_gguf.doctor import alternatives, machine, measured
    from dspark_gguf.engine import trial

    monkeypatch.setattr("psutil.getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(machine, "gpus", list)
    monkeypatch.setattr(alternatives, "_BUDGET", 0.3)
    monkeypatch.setattr(measured, "_READING", 0.3)
    known = trial.outcome
    monkeypatch.setattr(trial, "outcome", lambda feature, again=False: known(feature))


@pytest.fixture
def model_folder(tmp_path, monkeypatch):
    """Where llama.cpp keeps its models here; nothing of the real machine is seen."""
    from dspark_gguf import hub

    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "models"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setattr(hub, "cache_folder", lambda: tmp_path / "hub")
    (tmp_path / "models").mkdir()
    return tmp_path / "models"
