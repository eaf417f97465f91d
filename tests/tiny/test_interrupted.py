"""Ctrl-C before there is an answer: while a command is imported, loads, or measures."""

from __future__ import annotations

import signal
import sys
from threading import Event

import pytest

from dspark_gguf import load_pair
from dspark_gguf.config import ModelOptions
from dspark_gguf.engine import library
from dspark_gguf.engine.model import Model
from dspark_gguf.errors import Cancelled
from tests.children import PATIENCE, begun, run_python

#: Runs ``python -m dspark_gguf`` and presses Ctrl-C once as a module is about to be imported.
AT_IMPORT = """
import runpy, signal, sys

class Presses:
    def find_spec(self, name, *_):
        if name == {module!r}:
            sys.meta_path.remove(self)
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Presses())
sys.argv = ["dspark-gguf", "run", "-m", {model!r}, "--spec", "off", "-c", "256", "-n", "8", "Hi"]
runpy.run_module("dspark_gguf", run_name="__main__")
"""

#: Presses it where Python drops what is raised, and in a text that is executed.
DROPPED = """
import dspark_gguf.cli, gc, signal, time, weakref
from dspark_gguf.__main__ import main

def callback(prog_name):
    thing = main.__class__(main.__code__, {{}})
    watcher = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
    del thing
    time.sleep({patience})

def text(prog_name):
    exec("signal.raise_signal(signal.SIGINT)")

dspark_gguf.cli.main = {where}
main()
"""


@pytest.mark.parametrize(
    "module", ["click", "dspark_gguf.config", "dspark_gguf.chat.scripted", "numpy", "llama_cpp"]
)
def test_while_it_is_imported(tiny_files, module):
    """Nothing was to be saved: the exit code says it all."""
    done = run_python("-c", AT_IMPORT.format(module=module, model=str(tiny_files.target)))
    assert done.returncode == 130, done.stderr
    assert not (done.stdout + done.stderr).strip()


@pytest.mark.parametrize("where", ["callback", "text"])
def test_where_python_drops_it(where):
    """It comes again, and is no death by a signal."""
    done = run_python("-c", DROPPED.format(where=where, patience=PATIENCE))
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize(
    "line", ["llama_model_loader", "load_tensors", "llama_context", "n_ctx", "draft"]
)
def test_while_it_loads(tiny_files, line):
    """At a moment that llama.cpp's log shows; an answer that began is told apart by its text."""
    words = ["run", "-v", "-m", tiny_files.target, "-d", tiny_files.draft, "-n", "400", "Hi"]
    with begun(sys.executable, "-m", "dspark_gguf", *words, "--ignore-eos") as process:
        said = next(each for each in process.stderr if line.encode() in each)
        process.send_signal(signal.SIGINT)
        said += process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 130, said
    assert b"Traceback" not in said
    assert b"ignored" not in said


@pytest.mark.parametrize("number", [0, 20, 80])
def test_in_what_llama_cpp_calls(tiny_files, monkeypatch, number):
    """In a line of its log, where an exception would be lost: a KeyboardInterrupt all the same."""
    lines = []

    def press(text):
        if len(lines) == number:
            signal.raise_signal(signal.SIGINT)
        lines.append(text)
        return ""

    monkeypatch.setattr("dspark_gguf.engine.log.visible", press)
    library.set_command_log(verbose=True)
    try:
        with pytest.raises(KeyboardInterrupt):
            load_pair(tiny_files.target, "none")
    finally:
        library.set_command_log()
    assert len(lines) > number


def test_in_another_thread(tiny_files):
    """It hears of no signal, but of an event."""
    interrupt = Event()
    interrupt.set()
    with pytest.raises(Cancelled):
        Model(tiny_files.target, ModelOptions(), interrupt=interrupt)
