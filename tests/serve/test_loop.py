"""What the loop does, which all requests and streams share: no long work, and few wake-ups."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from types import SimpleNamespace

import pytest

from dspark_gguf.engine import measuring
from dspark_gguf.engine.template import ChatTemplate
from dspark_gguf.engine.vocabulary import Vocabulary
from dspark_gguf.serve import engine, parsing
from dspark_gguf.serve.app import low_latency
from dspark_gguf.serve.engine import Engine
from dspark_gguf.serve.streams import EventStreamResponse
from tests.serve.running import THINKING, running
from tests.serve.test_rules import TOOLS, USER, stream
from tests.tiny_dflash import Block, write_dflash
from tests.tiny_gguf import Tiny, write_llama

SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}}


@pytest.fixture
def threads(monkeypatch):
    """Threads in which work was done that takes long with long texts, by the work's name."""
    found = {}

    def watch(of, name):
        work = getattr(of, name)

        def noted(*args, **options):
            found.setdefault(name, set()).add(threading.current_thread())
            return work(*args, **options)

        monkeypatch.setattr(of, name, noted)

    watch(Vocabulary, "tokenize")
    watch(ChatTemplate, "render")
    watch(parsing, "schema_grammar")
    watch(parsing, "Grammar")
    return found


def test_no_text_or_schema_is_read_where_all_requests_wait(server, threads):
    short = {"model": "x", "max_tokens": 2}
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    for path, body in (
        ("/v1/chat/completions", {"messages": USER, "stream": True}),
        ("/v1/chat/completions", {"messages": USER, "response_format": format}),
        ("/v1/chat/completions", {"messages": USER, "tools": TOOLS, "tool_choice": "required"}),
        ("/v1/completions", {"prompt": "hello"}),
        ("/v1/messages", {"messages": USER}),
        ("/v1/messages/count_tokens", {"messages": USER}),
        ("/v1/responses", {"input": "hello"}),
        ("/tokenize", {"content": "hello"}),
    ):
        answer = server.http.post(path, json={**short, **body})
        assert answer.status_code == 200, answer.text
    assert set(found := threads) == {"tokenize", "render", "schema_grammar", "Grammar"}
    assert server.thread not in set().union(*found.values())


def test_those_who_wait_are_woken_once_for_each_pass(server, monkeypatch):
    calls, hand_out = [], Engine._send_updates

    def counted(engine):
        call = engine._call_in_loop
        engine._call_in_loop = lambda *args: calls.append(len(args[1])) or call(*args)
        hand_out(engine)
        engine._call_in_loop = call

    monkeypatch.setattr(Engine, "_send_updates", counted)
    before = server.engine.metrics.passes
    answer = server.chat(n=3, max_tokens=40).json()
    assert len(answer["choices"]) == 3
    assert max(calls) == 3
    assert len(calls) <= server.engine.metrics.passes - before


@pytest.mark.parametrize("options", [{"n": 2}, {"logprobs": True, "top_logprobs": 2}])
def test_text_waits_for_that_of_the_next_passes(server, monkeypatch, options):
    options |= {"max_tokens": 40, "temperature": 0, "seed": 3}
    at_once, _ = stream(server, **options)
    monkeypatch.setattr(engine, "_UPDATE_SECONDS", 60.0)
    later, _ = stream(server, **options)

    def said(chunks):
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        parts = {}
        for choice in choices:
            text, scores, ends = parts.setdefault(choice["index"], [[], [], []])
            text.append(choice["delta"].get("content") or "")
            content = (choice.get("logprobs") or {}).get("content") or ()
            scores += [each["token"] for each in content]
            ends.append(choice["finish_reason"])
        return {k: ("".join(text), scores, ends[-1]) for k, (text, scores, ends) in parts.items()}

    assert said(later) == said(at_once)
    # The role, what came first, the rest and the end, of each; and one for the end of another.
    assert len(later) <= 4 * options.get("n", 1) + 2 < len(at_once)


def test_a_stream_makes_no_task_for_an_event():
    tasks = set()

    async def events():
        for _ in range(20):
            await asyncio.sleep(0)
            tasks.update(asyncio.all_tasks())
            yield "data: x\n\n"

    async def receive():
        await asyncio.sleep(10)

    sent = []

    async def send(message):
        sent.append(message)

    async def try_it():
        answers = SimpleNamespace(cancel=lambda: None)
        await asyncio.wait_for(EventStreamResponse(answers, events())({}, receive, send), 5)

    asyncio.run(try_it())
    assert [each.get("body") for each in sent] == [None, *[b"data: x\n\n"] * 20, b""]
    assert "content-length" not in dict(sent[0]["headers"])
    assert len(tasks) <= 5


def test_no_thread_holds_up_the_loop_for_long():
    interval = sys.getswitchinterval()
    with low_latency():
        assert gc.get_freeze_count() > 1000
        assert sys.getswitchinterval() < interval
    assert gc.get_freeze_count() == 0
    assert sys.getswitchinterval() == interval


def test_idle_time_measures_a_draft_that_follows_its_target(tmp_path, monkeypatch):
    """Behind a conversation that goes on as it would have."""
    tiny = Tiny(context=1024, template=THINKING)
    target = write_llama(tmp_path / "target.gguf", tiny)
    block = write_dflash(tmp_path / "block.gguf", Block(), tiny)
    monkeypatch.setattr(engine, "_IDLE_SECONDS", 0.05)
    guess_seconds, taken = measuring.guess_seconds, []

    def timed(*caches):
        taken.append(guess_seconds(*caches))
        return taken[-1]

    monkeypatch.setattr(measuring, "guess_seconds", timed)
    with running((target, block)) as server:
        said = []
        for count in (1, 2):
            answer = server.chat(max_tokens=12).json()
            said.append(answer["choices"][0]["message"]["content"])
            server.until(lambda count=count: len(taken) >= 2 * count)
        assert said[0] == said[1]
