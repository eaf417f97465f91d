"""Tiny targets with a rule that a draft can learn."""

from __future__ import annotations

from contextlib import suppress

import pytest

from tests.train.targets import write_rule


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The same sums in the same order, and no waiting for another core."""
    with suppress(ModuleNotFoundError):  # then the tests that need it are skipped
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cycle_target(tmp_path_factory):
    return write_rule(tmp_path_factory.mktemp("train") / "cycle.gguf", "llama")
