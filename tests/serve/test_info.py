"""Completions, tokens, and what the server tells about itself."""

from __future__ import annotations

import json

import pytest

from dspark_gguf.serve.metrics import Metrics
from tests.serve.running import running
from tests.serve.scripted import write_parts
from tests.serve.test_rules import PLAIN

openai = pytest.importorskip("openai")


def test_completions_stream_what_they_say_whole(client):
    options = {"model": "x", "prompt": "hello", "max_tokens": 10}
    whole = client.completions.create(**options)
    chunks = list(client.completions.create(**options, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert whole.usage.prompt_tokens == 1


def test_ids_several_prompts_n_and_echo(client):
    by_id = client.completions.create(model="x", prompt=[259, 259], max_tokens=4, echo=True)
    by_text = client.completions.create(model="x", prompt="hellohello", max_tokens=4, echo=True)
    assert by_id.choices[0].text == by_text.choices[0].text
    assert by_id.choices[0].text.startswith("hellohello")
    many = client.completions.create(model="x", prompt=["he", "llo"], n=2, max_tokens=3)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    assert many.usage.completion_tokens == 12


def test_logprobs_in_the_older_shape(client):
    answer = client.completions.create(model="x", prompt="hello", max_tokens=5, logprobs=2)
    scores = answer.choices[0].logprobs
    assert len(scores.tokens) == len(scores.token_logprobs) == len(scores.text_offset) == 5
    assert all(len(best) == 2 for best in scores.top_logprobs)


def test_offsets_are_places_in_the_text_also_of_characters_of_several_tokens(tmp_path):
    parts = ["ab", b"\xf0\x9f", b"\x8e\x89cd", "<x>", "ef"]
    files = [write_parts(tmp_path / "a.gguf", parts, control=["<x>"])]
    body = {"prompt": "hey\n", "max_tokens": 50, "logprobs": 0}
    with running(files, settings=PLAIN) as server:
        [whole] = server.http.post("/v1/completions", json=body).json()["choices"]
        assert whole["text"] == "ab\U0001f389cdef"
        assert whole["logprobs"]["text_offset"] == [0, 2, 2, 5, 5]
        text = server.http.post("/v1/completions", json={**body, "stream": True}).text
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
    scores = [json.loads(line)["choices"][0]["logprobs"] for line in lines]
    found = [place for each in scores if each for place in each["text_offset"]]
    assert found == whole["logprobs"]["text_offset"]


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "x", "suffix": "y"},
        {"prompt": [99999]},
        {"prompt": ""},
        {"prompt": []},
        {"prompt": ["x"] * 100},
        {"prompt": "x", "echo": True, "logprobs": 1},
    ],
    ids=str,
)
def test_wrong_completions_are_400(server, body):
    answer = server.http.post("/v1/completions", json={"max_tokens": 2, **body})
    assert answer.status_code == 400, answer.text


def test_tokens_and_back(server):
    ids = server.http.post("/tokenize", json={"content": "hello"}).json()["tokens"]
    assert ids == [259]
    pieces = server.http.post("/tokenize", json={"content": "hello", "with_pieces": True}).json()
    assert pieces["tokens"] == [{"id": 259, "piece": "hello"}]
    pieces = server.http.post("/tokenize", json={"content": "aé", "with_pieces": True}).json()
    assert [each["piece"] for each in pieces["tokens"]] == ["a", [0xC3], [0xA9]]
    assert server.http.post("/detokenize", json={"tokens": ids}).json() == {"content": "hello"}
    assert server.http.post("/detokenize", json={"tokens": [10**6]}).status_code == 400


def test_props_and_slots(server):
    props = server.http.get("/props").json()
    assert props["total_slots"] == 4
    assert props["default_generation_settings"]["n_ctx"] == 1024
    assert props["modalities"] == {"vision": False, "audio": False}
    slots = server.http.get("/slots").json()
    assert [slot["id"] for slot in slots] == [0, 1, 2, 3]


def test_metrics_count_what_was_done(server):
    def value(name):
        lines = server.http.get("/metrics").text.splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(name))

    before = value("llamacpp:tokens_predicted_total ")
    server.chat(max_tokens=20)
    assert value("llamacpp:tokens_predicted_total ") == before + 20
    drafted = value("llamacpp:spec_decode_num_draft_tokens ")
    assert 0 < value("llamacpp:spec_decode_num_accepted_tokens ") <= drafted
    assert value("vllm:spec_decode_num_draft_tokens_total ") == drafted
    assert value('llamacpp:spec_decode_num_accepted_tokens_per_pos{position="0"}') > 0
    assert value("llamacpp:requests_processing ") == 0


def test_who_is_alone_is_one_conversation_in_each_pass(server):
    """Also in the pass that it begins with, and in its last one."""
    metrics = server.engine.metrics
    passes, busy = metrics.passes, metrics.busy_slots
    server.chat(max_tokens=5)
    assert metrics.busy_slots - busy == metrics.passes - passes > 1


def test_large_counts_are_exact():
    metrics = Metrics(prompt_tokens=123_456_789)
    assert "\nllamacpp:prompt_tokens_total 123456789\n" in metrics.text(0, 0)


def test_embeddings_are_not_of_a_pair(server):
    """No status that clients send again, such as 501."""
    answer = server.http.post("/v1/embeddings", json={"input": "x"})
    assert answer.status_code == 404
    assert "no embeddings" in answer.json()["error"]["message"]
