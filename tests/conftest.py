"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

# llama.cpp's threads wait for each other at every step of a pass, spinning. On two cores that have
# other work too, tiny models then take five times longer than with threads that sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from tests.tiny_gguf import Tiny, write_llama, write_mamba


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory):
    """No test reads or writes the user's own cache, history or data."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("CACHE", "DATA", "CONFIG"):
            patch.setenv(f"XDG_{kind}_HOME", str(tmp_path_factory.mktemp(kind.lower())))
        yield


@pytest.fixture(scope="session")
def demo_files(own_folders):
    """The demo pair's files (target, draft), made once for the whole run."""
    from dspark_gguf.catalog.demo import demo_pair

    return demo_pair()


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory):
    """Tiny GGUFs by name: a target, a draft that often agrees, and what is not to be loaded."""
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
def dspark(demo_files):
    """Runs `dspark-gguf` with these words; the demo models are made already."""

    from click.testing import CliRunner

    from dspark_gguf.cli import main

    def run(*words, stdin=""):
        return CliRunner().invoke(main, [str(word) for word in words], input=stdin)

    return run
