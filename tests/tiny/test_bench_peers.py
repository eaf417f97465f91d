"""Other programs beside ours: llama-cpp-python's loop, and llama.cpp's server on the PATH."""

from __future__ import annotations

import json
import os
import stat
import sys
import time

import pytest

from dspark_gguf import load_pair
from dspark_gguf.config import ModelOptions, Sampling
from dspark_gguf.errors import DSparkError
from dspark_gguf.measure.bench.peers import LlamaPeer, peers, tally_of_timings
from dspark_gguf.measure.bench.turns import Task

TASK = Task("chat", tuple(range(100, 120)), 0.0, 8)

#: As llama-server answers, as far as the bench reads it; notes what it was asked.
SERVER = """
import http.server, json, os, sys
words = sys.argv[1:]
if "--version" in words:
    print("version: 7 (abc1234)", file=sys.stderr)
elif "--help" in words:
    print("--spec-type none,draft-simple")
else:
    with open(os.environ["NOTES"], "a") as notes:
        print(json.dumps({"pid": os.getpid(), "words": words}), file=notes)
    if os.environ.get("BROKEN"):
        sys.exit("error: no such model")
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_): pass
        def do_GET(self): self.say({"status": "ok"})
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with open(os.environ["NOTES"], "a") as notes:
                print(json.dumps(asked), file=notes)
            timings = {"prompt_n": 20, "prompt_ms": 500.0, "predicted_n": 9, "predicted_ms": 2000.0}
            if "-md" in words:
                timings |= {"draft_n": 9, "draft_n_accepted": 5, "predicted_ms": 1000.0}
            self.say({"content": "x", "timings": timings})
        def say(self, answer):
            self.send_response(200); self.end_headers()
            self.wfile.write(json.dumps(answer).encode())
    port = int(words[words.index("--port") + 1])
    http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def put(tmp_path, monkeypatch):
    """Puts a program on a PATH that holds nothing else, and tells what was noted."""
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.setenv("PATH", str(tmp_path))

    def program(name, source):
        path = tmp_path / name
        path.write_text(f"#!{sys.executable}\n{source}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return program


@pytest.fixture
def notes(tmp_path):
    """What the fake programs were asked."""
    return lambda: [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]


@pytest.fixture(scope="module")
def pair(tiny_files):
    """A target and a draft, tiny."""
    options = ModelOptions(n_ctx=128, threads=1)
    with load_pair(tiny_files.target, tiny_files.draft, target_options=options) as loaded:
        yield loaded


def test_without_tools_on_the_path(pair, put):
    """llama-cpp-python alone: its own loop, and its prompt lookup twice."""
    with peers(pair, Sampling(), 128) as found:
        assert [one.name for one in found] == ["llama-py", "py-lookup-10", "py-lookup-2"]
        for one in found:
            tally = one.answer(TASK)
            assert tally.tokens == TASK.most - 1  # the first one comes with the prompt
            assert 0 < tally.first_token_seconds == tally.prefill_seconds < tally.seconds


def test_llama_cpp_pythons_loop_says_what_ours_says(pair):
    """The same file and prompt, greedy: what is compared in speed is the same work."""
    from dspark_gguf import Decoder, Limits, Speculation

    plain = Decoder.for_pair(pair, Sampling(temperature=0), Speculation(mode="off"))
    wanted = plain.answer(TASK.tokens, Limits(max_tokens=8)).tokens
    peer = LlamaPeer(pair.target, 128, Sampling())
    said = []
    original = peer._llama.generate
    peer._llama.generate = lambda *args, **options: (
        said.append(token) or token for token in original(*args, **options)
    )
    peer.answer(TASK)
    peer.close()
    assert said == wanted


def test_the_first_token_is_the_prompts(pair, monkeypatch):
    """By a clock that ticks once a look: a second for the prompt, and one for each token."""
    ticks = iter(range(100))
    clock = "dspark_gguf.measure.bench.peers.perf_counter"
    monkeypatch.setattr(clock, lambda: float(next(ticks)))
    peer = LlamaPeer(pair.target, 128, Sampling())
    tally = peer.answer(TASK)
    peer.close()
    assert (tally.tokens, tally.seconds, tally.prefill_seconds) == (7, 8.0, 1.0)
    assert tally.tokens_per_second == 1.0


def test_a_server_on_the_path(pair, put, notes):
    """Once plain and once with the draft, on the same files, prompts and threads."""
    put("llama-server", SERVER)
    with peers(pair, Sampling(top_k=7), 128) as found:
        plain, drafting = found[3:]
        assert (plain.name, drafting.name) == ("server", "server-draft")
        assert "7 (abc1234)" in plain.about
        one, other = plain.answer(TASK), drafting.answer(TASK)
    assert (one.tokens_per_second, one.rounds, one.drafted) == (4.0, 8, 0)
    assert (other.tokens_per_second, other.rounds, other.accepted_share) == (8.0, 3, 5 / 9)
    assert other.first_token_seconds == 0.5
    started, asked = notes()[:2], notes()[2:]
    for start in started:
        words = start["words"]
        assert words[words.index("-m") + 1] == str(pair.target.path)
        assert words[words.index("-t") + 1] == "1"
    assert started[1]["words"][started[1]["words"].index("--spec-type") + 1] == "draft-simple"
    assert asked[0]["prompt"] == list(TASK.tokens)
    assert (asked[0]["temperature"], asked[0]["top_k"], asked[0]["cache_prompt"]) == (0.0, 7, False)
    for start in started:
        with pytest.raises(ProcessLookupError):
            os.kill(start["pid"], 0)


def test_a_server_that_does_not_start(pair, put, monkeypatch):
    """Its own last words, and what to do; no waiting for one that has ended."""
    put("llama-server", SERVER)
    monkeypatch.setenv("BROKEN", "1")
    monkeypatch.setattr(time, "sleep", lambda _: None)
    wanted = pytest.raises(DSparkError, match=r"error: no such model.*leave out --peer")
    with wanted, peers(pair, Sampling(), 128):
        pass


def test_an_answer_without_figures():
    """A server that says nothing of its times."""
    with pytest.raises(DSparkError, match="timings None"):
        tally_of_timings({"content": "x"})
