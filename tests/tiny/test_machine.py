"""What psutil and the system tell of the cores of this machine."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import psutil
import pytest

from dspark_gguf.engine import library
from tests.children import run_python


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not bind to cores")
def test_only_cores_that_this_process_may_use():
    """Bound to one CPU, there is one core."""
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from dspark_gguf.engine import library; print(library.physical_cores())"
    )
    assert run_python("-c", program).stdout == "1\n"
    assert 1 <= library.physical_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("told", "cores"), [("4\n", 4), ("", 10)])
def test_on_a_mac_the_performance_cores(monkeypatch, told, cores):
    """Apple Silicon tells them; on Intel `sysctl` knows no such name, and all cores count."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(library.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=told))
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 10)
    assert library.physical_cores() == cores
