"""llama.cpp's log: quiet in our commands, as it was for other code, and heard for our errors."""

from __future__ import annotations

import ctypes
import os
import threading

import llama_cpp
import pytest

from dspark_gguf.engine import library, log
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.errors import ModelError
from tests.children import run_python
from tests.tiny_dflash import write_dflash

USE_US = """
import dspark_gguf
from dspark_gguf import Decoder, DSparkLlama, Limits, load_pair
with load_pair({target!r}, {draft!r}) as pair:
    Decoder.for_pair(pair).answer([1, 2, 3], Limits(max_tokens=4))
DSparkLlama({target!r}, draft_model={draft!r}, n_ctx=256, verbose={verbose}).close()
"""
PLAIN = """
import sys
import llama_cpp
sys.stderr.write("BEGIN")
llama = llama_cpp.Llama({target!r}, n_ctx=256, verbose={verbose})
llama.create_completion("abc", max_tokens=2, temperature=0.0)
llama.close()
"""
COMMAND = """
from dspark_gguf import Decoder, Limits, load_pair
from dspark_gguf.engine import library
library.set_command_log({verbose})
with load_pair({target!r}, {draft!r}) as pair:
    Decoder.for_pair(pair).answer([1, 2, 3], Limits(max_tokens=4))
try:
    load_pair({truncated!r})
except Exception:
    pass
"""


def said(program, files, **values):
    """What it writes to stderr."""
    names = {name: str(getattr(files, name)) for name in ("target", "draft", "truncated")}
    done = run_python("-c", program.format(**names, **values))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return done.stderr


def lines(text):
    """Without times and addresses: what each line says first."""
    return [line.split(":")[0] for line in text.splitlines() if not line.startswith("llama_perf")]


def test_a_plain_llama_is_as_loud_as_without_us(tiny_files):
    """After everything of ours was imported and used."""
    alone = said(PLAIN, tiny_files, verbose=True)
    beside = said(USE_US + PLAIN, tiny_files, verbose=True)
    before, _, after = beside.partition("BEGIN")
    assert len(lines(alone)) > 20
    assert lines("BEGIN" + after) == lines(alone)
    assert "llama_model_loader" in before  # as loud as a plain one


def test_not_verbose_is_quiet(tiny_files):
    """The draft of a `DSparkLlama` too, whose passes and contexts are ours."""
    said_before = "import logging\nlogging.getLogger('llama-cpp-python').setLevel('ERROR')\n"
    alone = said(PLAIN, tiny_files, verbose=False)
    assert said(said_before + USE_US + PLAIN, tiny_files, verbose=False) == alone


def test_a_script_of_ours_is_quiet(tiny_files, tmp_path):
    """Without a word about the log: loading, drafting of each kind, and the end of the process."""
    block = write_dflash(tmp_path / "block.gguf")
    for draft in (tiny_files.draft, block):
        program = """
from dspark_gguf import Decoder, Limits, Sampling, load_pair
pair = load_pair({target!r}, {draft!r})
Decoder.for_pair(pair, Sampling(grammar='root ::= "a"')).answer([1, 2], Limits(max_tokens=4))
Decoder.for_pair(pair).answer([1, 2, 3, 1, 2], Limits(max_tokens=9))
"""
        done = run_python("-c", program.format(target=str(tiny_files.target), draft=str(draft)))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("verbose", [False, True])
def test_the_log_of_our_commands(tiny_files, verbose):
    """Loading, decoding and failing print nothing; with `verbose` they do."""
    text = said(COMMAND, tiny_files, verbose=verbose)
    assert ("llama" in text) is verbose
    assert verbose or text == ""


@pytest.fixture
def heard():
    """The lines that a log of other code gets."""
    found = []
    callback = llama_cpp.llama_log_callback(lambda _, text, data: found.append((text, data)))
    before = log._installed()
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(7))
    yield found
    callback_now, data_now = log._installed()
    llama_cpp.llama_log_set(*before)
    assert log._address(callback_now) == log._address(callback)
    assert data_now.value == 7


@pytest.fixture
def damaged(tiny_files, tmp_path):
    """A file that ends in its header: llama.cpp says why it cannot read it."""
    path = tmp_path / "damaged.gguf"
    path.write_bytes(tiny_files.target.read_bytes()[:200])
    return path


def test_what_we_do_is_not_told_to_other_code(heard, damaged):
    """Our message has llama.cpp's reason, and nobody else's log has it."""
    with pytest.raises(ModelError, match="failed to read"):
        read_header(damaged)
    assert not heard


def test_other_threads_are_heard_while_we_listen(heard, damaged):
    """What llama.cpp says to them goes where it went, with their data."""

    def load():
        llama_cpp.llama_model_load_from_file(
            os.fsencode(damaged), llama_cpp.llama_model_default_params()
        )

    thread = threading.Thread(target=load)
    with library.listening() as errors:
        thread.start()
        thread.join(60)
    assert not errors()
    assert heard
    assert all(data == 7 for _, data in heard)


def test_each_thread_hears_its_own_errors(heard, damaged):
    """Two blocks that overlap: neither takes the other's lines, the last one puts back the log."""
    entered, done, got = threading.Event(), threading.Event(), []

    def other():
        with library.listening() as errors:
            entered.set()
            done.wait(60)
            got.append(errors())

    thread = threading.Thread(target=other)
    with library.listening() as errors:
        thread.start()
        assert entered.wait(60)
        with pytest.raises(ModelError):
            read_header(damaged)
        assert errors()  # a block inside another leaves it its lines
    done.set()
    thread.join()
    assert got == [[]]


def test_a_log_that_is_set_meanwhile_stays(heard):
    """Who installs one while we listen keeps it."""
    theirs, before = llama_cpp.llama_log_callback(lambda *_: None), log._installed()
    with library.listening():
        llama_cpp.llama_log_set(theirs, None)
    assert log._address(log._installed()[0]) == log._address(theirs)
    llama_cpp.llama_log_set(*before)


def test_in_our_commands_it_need_not_be_put_back(heard, damaged):
    """Each pass would pay for that. Another log, installed later, is respected all the same."""
    before = log._installed()
    library.set_command_log()
    with library.listening():
        pass
    assert log._log._is_ours()
    for _ in range(2):
        with pytest.raises(ModelError, match="failed to read"):
            read_header(damaged)
    assert log._log._is_ours()
    llama_cpp.llama_log_set(*before)
    with pytest.raises(ModelError, match="failed to read"):
        read_header(damaged)
    assert not log._log._is_ours()
    assert not heard


def test_a_log_of_other_code_that_is_gone_is_not_called(tiny_files):
    """It puts back ours, which stays in commands, and frees its own: that was called then."""
    done = run_python("-c", BORROWED)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


BORROWED = """
import gc
import llama_cpp
from dspark_gguf.engine import library, log
library.set_command_log()
with library.listening():
    pass
def other():
    before = log._installed()
    mine = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(mine, None)
    with library.listening():
        pass
    llama_cpp.llama_log_set(*before)
other()
gc.collect()
new = [llama_cpp.llama_log_callback(lambda *_: None) for _ in range(50)]
del new
gc.collect()
for _ in range(50):
    llama_cpp.llama_model_load_from_file(b"missing.gguf", llama_cpp.llama_model_default_params())
print("done")
"""


def test_what_llama_cpp_says_when_it_starts_is_not_printed(damaged):
    """A build for GPUs tells of each of them on stderr, before any command can set its log."""
    speaks = """import llama_cpp, os, sys
def start(begin=llama_cpp.llama_backend_init):
    begin()
    params = llama_cpp.llama_model_default_params()
    llama_cpp.llama_model_load_from_file(os.fsencode(sys.argv[1]), params)
llama_cpp.llama_backend_init = start
"""
    lines = "start()", "import dspark_gguf.engine.library"
    loud, ours = (run_python("-c", speaks + line, str(damaged)) for line in lines)
    assert "failed to read" in loud.stderr
    assert ours.returncode == 0
    assert not ours.stderr
