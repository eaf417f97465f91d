"""An exception between any two steps of Python: what a Ctrl-C, a signal or a full memory can be."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import dspark_gguf

ROOT = Path(dspark_gguf.__file__).parent
#: Not ours to strike: llama.cpp calls the one, the others hold nothing.
_SPARED = {"engine/log.py", "testing/models.py", "testing/draws.py"}
_STRUCK = {
    str(path) for path in ROOT.rglob("*.py") if path.relative_to(ROOT).as_posix() not in _SPARED
}


class Strike(BaseException):
    """As unexpected as a KeyboardInterrupt."""


class _Tracer:
    def __init__(self, at, presses=False):
        self.steps, self.at, self.presses = 0, at, presses

    def __call__(self, frame, event, argument):
        if frame.f_code.co_filename not in _STRUCK or frame.f_code.co_name == "__del__":
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return self.step

    def step(self, frame, event, argument):
        if event == "opcode":
            self.steps += 1
            if self.steps == self.at and self.presses:
                signal.raise_signal(signal.SIGINT)
            elif self.steps == self.at:
                raise Strike
        return self.step


def traced(work, at=0, presses=False):
    """Do `work`, with a strike before its step number `at`; returns how many steps it took.

    With `presses`, Ctrl-C is pressed there, which some work makes wait.
    One that meets the clean-up of an abandoned generator goes no further: Python drops it there,
    as it drops a KeyboardInterrupt.
    """
    tracer, before, dropped = _Tracer(at, presses), sys.gettrace(), sys.unraisablehook
    sys.unraisablehook = lambda what: what.exc_type is Strike or dropped(what)
    sys.settrace(tracer)
    try:
        work()
    except (Strike, KeyboardInterrupt):
        pass
    finally:
        sys.settrace(before)
        sys.unraisablehook = dropped
    return tracer.steps


def places(work, most):
    """At most `most` steps of `work`, spread evenly, and none twice."""
    steps = traced(work)
    return range(1, steps + 1, max(1, steps // most))
