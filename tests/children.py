"""Processes that tests start: with every signal's default, and never longer than their test."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

#: The longest that one thing may take, in seconds. Only a program that is broken takes so long.
PATIENCE = 60
#: The same for a program that was told to end.
ENDING = 20

#: As `short_profile`: where models are loaded, no two seconds are spent on measuring them.
_MAIN = """
import sys
if sys.argv[1:2] in (["run"], ["chat"]):
    from dspark_gguf.engine import pair
    pair.PROFILE_SECONDS = 0.25
from dspark_gguf.cli import main; main()
"""
PROGRAM = [sys.executable, "-c", _MAIN]

_terminals = []


@contextmanager
def default_signals():
    """Inside, no child is born ignoring a signal because this process does.

    A signal that is ignored (by nohup, in the background job of a script) is ignored in children
    too, one that has a handler is not: a handler that does nothing ignores it for us alone.
    """
    ignored = [each for each in signal.valid_signals() if signal.getsignal(each) is signal.SIG_IGN]
    for each in ignored:
        interrupts = each is signal.SIGINT  # also in the tests that press Ctrl-C here
        signal.signal(each, signal.default_int_handler if interrupts else lambda *_: None)
    try:
        yield
    finally:
        for each in ignored:
            signal.signal(each, signal.SIG_IGN)


def run(*command, **options):
    """A whole process: what it said as text, with nothing to read unless `input` is given."""
    more = {} if "input" in options else {"stdin": subprocess.DEVNULL}
    options = {"capture_output": True, "text": True, "timeout": PATIENCE} | more | options
    return subprocess.run([str(word) for word in command], check=False, **options)


def run_python(*words, **options):
    """The same of this Python."""
    return run(sys.executable, *words, **options)


@contextmanager
def begun(*command, stdin=subprocess.DEVNULL, **options):
    """A process that goes on, and pipes for what it says; killed at the end."""
    process = subprocess.Popen(
        [str(word) for word in command], stdin=stdin,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        process.wait()


def started(*words, **options):
    """The same of ``dspark-gguf`` with these words."""
    return begun(*PROGRAM, *words, **options)


def in_terminal(command, arguments, **options):
    """A program in a terminal of its own; `end_terminals` kills it if its test fails."""
    import pexpect

    if not hasattr(pexpect, "spawn"):
        pytest.skip("no pseudo-terminals here")
    options = {"timeout": PATIENCE, "dimensions": (40, 200), "encoding": "utf-8"} | options
    _terminals.append(pexpect.spawn(command, arguments, **options))
    return _terminals[-1]


def program_in_terminal(*words, env, term="xterm", **options):
    """``dspark-gguf`` with these words in a terminal of this kind."""
    command, *arguments = [*PROGRAM, *(str(word) for word in words)]
    env = {**env, "TERM": term, "PROMPT_TOOLKIT_NO_CPR": "1"}
    return in_terminal(command, arguments, env=env, **options)


def ended(child):
    """Exit status, or minus the signal, of a child in a terminal that is about to end."""
    import pexpect

    try:
        child.expect(pexpect.EOF, timeout=ENDING)
    except pexpect.TIMEOUT:
        pytest.fail(f"it did not end within {ENDING} s; it showed last: {child.before[-500:]!r}")
    child.wait()
    return child.exitstatus if child.exitstatus is not None else -child.signalstatus


def window_closed(child):
    """Shut the terminal of a child, which the system tells by SIGHUP; the child's exit status."""
    child.ptyproc.fileobj.close()
    for _ in range(20 * ENDING):
        if not child.isalive():
            return child.exitstatus
        time.sleep(0.05)
    pytest.fail(f"it did not end within {ENDING} s of its terminal")


def end_terminals():
    """No child outlives its test, whatever that test forgot."""
    while _terminals:
        child = _terminals.pop()
        if child.isalive():
            child.kill(signal.SIGKILL)
        child.close(force=True)
