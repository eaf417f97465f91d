"""What the server refuses, and what that costs the others: nothing."""

from __future__ import annotations

import asyncio
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from dspark_gguf.errors import ResourceError
from dspark_gguf.serve.bodies import ChatBody, CompletionBody
from dspark_gguf.serve.streams import EventStreamResponse
from tests.serve.running import running


def refused(answer, status=400):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["message"]
    assert error["type"]
    return error


def test_a_context_overflow_names_both_numbers(server):
    error = refused(server.chat("x" * 2000))
    assert error["code"] == "context_length_exceeded"
    assert "1024" in error["message"]
    assert "20" in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"messages": []},
        {"messages": "hello"},
        {"messages": [{"role": "king", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"temperature": -1},
        {"top_logprobs": 1000, "logprobs": True},
        {"n": 0},
        {"n": 10**9},
        {"stop": ["x"] * 100},
        {"tools": [{"type": "function"}]},
        {"tool_choice": "maybe"},
        {"logit_bias": {"99999999": 1}},
        {"response_format": {"type": "poem"}},
        {"grammar": "/etc/passwd"},
        {"grammar": "root ::= root"},
        {"grammar": f'root ::= "a"{{{"9" * 5000}}}'},
        {"guided_json": {"type": "string", "pattern": f"a{{{'9' * 5000}}}"}},
        {"guided_json": {"type": "array", "minItems": 3000.0}},
        {"json_schema": {"type": "string", "pattern": "^(?=a)b$"}},
        {"json_schema": {"type": "array", "uniqueItems": True}},
        {"json_schema": {"$ref": "https://example.com/schema.json"}},
        {"json_schema": {"type": "array", "items": {}, "minItems": 10**8}},
    ],
    ids=str,
)
def test_a_wrong_body_is_400(server, body):
    refused(server.chat(**{"max_tokens": 3, **body}))
    assert server.chat(max_tokens=1).status_code == 200


def test_what_is_no_json_or_half_a_character_is_400(server):
    kind = {"content-type": "application/json"}
    for content in (b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000):
        refused(server.http.post("/v1/chat/completions", content=content, headers=kind))
    half = b'{"messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 1}'
    answer = server.http.post("/v1/chat/completions", content=half, headers=kind)
    assert answer.status_code in (200, 400)


def test_a_body_that_is_too_large_is_413(server):
    refused(server.http.post("/tokenize", content=b"x" * (9 * 1024**2)), 413)

    def pieces():
        for _ in range(9):
            yield b" " * 1024**2

    kind = {"content-type": "application/json"}
    refused(server.http.post("/tokenize", content=pieces(), headers=kind), 413)
    refused(server.http.post("/v1/responses", json={"input": [{}] * 300_000}), 413)


def test_a_body_is_refused_at_its_first_fault():
    """To find and list a million of them took minutes, in which nobody was answered."""
    for body, fields in (
        (CompletionBody, {"prompt": [{}] * 1000}), (ChatBody, {"messages": [1] * 1000}),
        (ChatBody, {"messages": [{"role": "user", "content": [1] * 1000}]}),
        (CompletionBody, {"logit_bias": {str(k): "x" for k in range(2000)}}),
    ):  # fmt: skip
        with pytest.raises(ValidationError) as refusal:
            body(**fields)
        assert refusal.value.error_count() < 8


def test_unknown_routes_are_404_in_the_same_shape(server):
    refused(server.http.get("/v1/nothing"), 404)


def test_a_key_is_asked_for(tiny_pair):
    with running(tiny_pair, key="secret") as server:
        assert server.chat(max_tokens=1).status_code == 200
        plain = httpx.Client(base_url=server.url)
        assert refused(plain.get("/v1/models"), 401)["code"] == "invalid_api_key"
        for headers in ({"Authorization": "Bearer no"}, {"x-api-key": "sécret".encode()}):
            refused(plain.get("/v1/models", headers=headers), 401)
        assert plain.get("/v1/models", headers={"x-api-key": "secret"}).status_code == 200
        assert plain.get("/health").status_code == 200
        plain.close()


def test_a_key_may_have_any_characters(tiny_pair):
    with running(tiny_pair, key="clé") as server:
        for headers in ({"Authorization": "Bearer clé".encode()}, {"x-api-key": "clé".encode()}):
            assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 200


def long(server, stream=True, **body):
    """A request that goes on until somebody ends it."""
    messages = [{"role": "user", "content": "hello"}]
    body = {"messages": messages, "stream": stream, **body}
    return server.http.stream("POST", "/v1/chat/completions", json=body)


def test_a_client_that_leaves_a_stream_ends_the_answer(tiny_pair):
    with running(tiny_pair) as server:
        done = server.slowed(0.05)  # else the answer may be over before anybody looks
        with long(server) as answer:
            lines = answer.iter_lines()  # kept: httpx hangs up when nobody holds it any more
            assert next(lines).startswith("data: {")
            server.until(lambda: server.engine.running == 1)
        server.until(server.is_idle)
        done.set()
        assert server.engine.metrics.answers == {"cancelled": 1}


def test_a_client_that_leaves_before_the_first_event_ends_the_answer():
    class Answers:
        is_cancelled = False

        def cancel(self):
            self.is_cancelled = True

    async def events():
        yield "data: never\n\n"

    async def left(message=None):
        if message is None:
            return {"type": "http.disconnect"}
        return await asyncio.sleep(10)

    async def try_it():
        scope = {"type": "http", "asgi": {"spec_version": "2.3"}}
        with suppress(ClientDisconnect):
            await asyncio.wait_for(EventStreamResponse(answers, events())(scope, left, left), 5)

    answers = Answers()
    asyncio.run(try_it())
    assert answers.is_cancelled


def test_a_client_that_leaves_before_a_plain_answer_ends_it(tiny_pair):
    with running(tiny_pair, n_ctx=1024) as server:
        done = server.slowed(0.05)
        with pytest.raises(httpx.ReadTimeout):
            server.http.post(
                "/v1/chat/completions", timeout=0.5,
                json={"messages": [{"role": "user", "content": "hello"}]},
            )  # fmt: skip
        server.until(server.is_idle, 5)
        done.set()
        assert server.engine.metrics.answers == {"cancelled": 1}


def test_a_full_queue_is_429_and_who_leaves_the_queue_harms_nobody(tiny_pair):
    with running(tiny_pair, parallel=1, queue=1) as server:
        done = server.slowed(0.02)
        with long(server) as first:
            lines = first.iter_lines()
            next(lines)
            with long(server) as second:
                server.until(lambda: server.engine.waiting == 1)
                answer = server.chat(max_tokens=1)
                assert refused(answer, 429)["code"] == "queue_full"
                assert int(answer.headers["retry-after"]) > 0
                assert next(second.iter_lines())
            server.until(lambda: server.engine.waiting == 0)
            assert server.engine.running == 1
            done.set()
            assert "[DONE]" in "".join(lines)
        assert server.chat(max_tokens=1).status_code == 200


def test_a_failed_pass_ends_the_answers_and_not_the_engine(tiny_pair, capfd):
    with running(tiny_pair) as server:
        step = server.engine.batcher.step

        def broken():
            server.engine.batcher.step = step
            raise ValueError("secret detail")

        server.engine.batcher.step = broken
        error = refused(server.chat(max_tokens=3), 500)
        assert "secret" not in error["message"]
        assert server.chat(max_tokens=3).status_code == 200
    assert "secret detail" in capfd.readouterr().err


def test_costs_that_cannot_be_measured_again_are_no_end(tiny_pair, monkeypatch):
    tried = threading.Event()

    def fails(budget):
        tried.set()
        raise ResourceError("the context is full", "Wait.")

    monkeypatch.setattr("dspark_gguf.serve.engine._IDLE_SECONDS", 0.05)
    with running(tiny_pair) as server:
        monkeypatch.setattr(server.pair, "measure_again", fails)
        assert server.chat(max_tokens=2).status_code == 200
        assert tried.wait(10)
        assert server.chat(max_tokens=2).status_code == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_has_ended_says_so_and_keeps_nobody_waiting(tiny_pair):
    with running(tiny_pair) as server:

        def ends():
            raise SystemExit

        server.engine.batcher.step = ends
        assert refused(server.chat(max_tokens=3), 503)["code"] == "shutting_down"
        refused(server.http.get("/health"), 503)
        refused(server.chat(max_tokens=3), 503)


@pytest.mark.parametrize("is_hurried", [True, False])
def test_all_answers_end_with_a_reason_at_a_second_signal_or_in_a_long_pass(
    tiny_pair, monkeypatch, capfd, is_hurried
):
    grace = 60.0 if is_hurried else 0.0
    monkeypatch.setattr("dspark_gguf.serve.app.GRACE_SECONDS", grace)
    with running(tiny_pair) as server:
        step, begun = server.engine.batcher.step, threading.Event()

        def endless():
            if server.engine.running == 2 or begun.is_set():
                begun.set()
                server.pair.interrupt.wait(15)
            return step()

        server.engine.batcher.step = endless

        def streamed():
            with long(server) as answer:
                return "".join(answer.iter_lines())

        with ThreadPoolExecutor() as pool:
            one, two = pool.submit(streamed), pool.submit(server.chat)
            assert begun.wait(20)
            for _ in range(2 if is_hurried else 1):
                server.server.handle_exit(signal.SIGINT, None)
            assert "shutting_down" in one.result(20)
            assert refused(two.result(20), 503)["code"] == "shutting_down"
        server.thread.join(20)
        assert not server.thread.is_alive()
    assert "Traceback" not in capfd.readouterr().err


def test_a_signal_lets_answers_finish_and_ends_long_ones_with_a_reason(tiny_pair, monkeypatch):
    monkeypatch.setattr("dspark_gguf.serve.app.GRACE_SECONDS", 0.3)
    with running(tiny_pair, n_ctx=1024) as server:
        server.slowed(0.02)

        def text(most):
            with long(server, max_tokens=most) as answer:
                return "".join(answer.iter_lines())

        with ThreadPoolExecutor() as pool:
            short, endless = pool.submit(text, 6), pool.submit(text, 900)
            server.until(lambda: server.engine.running >= 1)
            server.server.handle_exit(signal.SIGTERM, None)
            assert '"finish_reason": "length"' in short.result(20)
            assert "shutting_down" in endless.result(20)
        server.thread.join(20)
        assert not server.thread.is_alive()
