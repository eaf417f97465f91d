"""`dspark-gguf serve` as a program."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from threading import current_thread

import httpx
import pytest

from dspark_gguf import load_pair
from dspark_gguf.engine.context import Context
from dspark_gguf.serve.engine import Engine

START = "from dspark_gguf.cli import main; main()"


@pytest.fixture
def program(tiny_pair):
    """Starts the command; ends it with the test."""
    made = []
    target, draft = tiny_pair

    def start(*words):
        command = [sys.executable, "-c", START, "serve", "-m", target, "-d", draft, "-t", "1"]
        options = ["-c", "1024", "--no-learn", "--spec", "on", *words]
        made.append(subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True))
        return made[-1]

    yield start
    for each in made:
        each.kill()
        each.communicate()


def address(process):
    for line in process.stderr:
        if found := re.search(r"http://\S+:\d+", line):
            return found[0]
    raise AssertionError("it does not listen")


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_it_answers_until_a_signal(program, sign):
    process = program("--port", "0", "--api-key", "k")
    url = address(process)
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
    headers = {"Authorization": "Bearer k"}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=30)
    assert answer.status_code == 200
    process.send_signal(sign)
    assert process.wait(20) == 0


def test_a_port_that_is_taken_is_an_error_with_a_hint(program):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        process = program("--port", str(other.getsockname()[1]))
        _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Choose another --port" in said
    assert "Traceback" not in said


def test_an_empty_key_is_refused(dspark):
    done = dspark("serve", "--api-key", " ")
    assert done.exit_code == 2
    assert "API key is empty" in done.output


def test_without_its_packages_it_says_what_to_install(dspark, monkeypatch):
    monkeypatch.setattr(sys.modules["dspark_gguf.cli.serve"], "find_spec", lambda name: None)
    done = dspark("serve")
    assert done.exit_code == 2
    assert 'pip install "dspark-gguf[serve]"' in done.output


def test_all_passes_are_run_by_one_thread(tiny_files, monkeypatch):
    """OpenMP keeps threads for each thread that ran a pass: with two such, both become slower."""
    ran = set()
    real = Context.run
    monkeypatch.setattr(
        Context, "run", lambda self, parts: (ran.add(current_thread()), real(self, parts))[1]
    )
    with load_pair(tiny_files.target, tiny_files.draft, conversations=2) as pair:
        engine = Engine(pair)
        try:
            assert [thread.name for thread in ran] == ["engine"]  # costs were measured
        finally:
            engine.close()
