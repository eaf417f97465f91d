"""What people use a `Llama` with, on `DSparkLlama`: the real packages, the real pair."""

from __future__ import annotations

import json

import llama_cpp
import pytest
from click.testing import CliRunner
from pydantic import BaseModel

from dspark_gguf.dropin.llama import DSparkLlama

ASKED = "Anna is 31 years old. Who is it, and how old?"


class Person(BaseModel):
    """A person."""

    name: str
    age: int


@pytest.fixture
def stands_in(monkeypatch, demo_files):
    """Code that makes its own ``Llama`` makes ours; tells which were made."""
    made = []

    class Counted(DSparkLlama.with_draft(demo_files[1])):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(llama_cpp, "Llama", Counted)
    yield made
    for llama in made:
        llama.close()


def test_langchain(stands_in, demo_files):
    """ChatLlamaCpp: an answer, a stream of it, and a tool that is called."""
    from langchain_community.chat_models import ChatLlamaCpp

    chat = ChatLlamaCpp(
        model_path=str(demo_files[0]), n_ctx=1024, n_batch=256, temperature=0.0, max_tokens=60,
        repeat_penalty=1.0, verbose=False, seed=7,
    )  # fmt: skip
    assert chat.client is stands_in[0]
    parts = [part.content for part in chat.stream(ASKED)]
    assert len(parts) > 5
    assert "".join(parts).strip()
    assert chat.invoke(ASKED).content.strip()
    with_tool = chat.bind_tools(
        [Person], tool_choice={"type": "function", "function": {"name": "Person"}}
    )
    (call,) = with_tool.invoke(ASKED).tool_calls
    assert call["name"] == "Person"
    Person.model_validate(call["args"])


def test_instructor(demo_files):
    """A pydantic object out of an answer."""
    import instructor

    llama = DSparkLlama(str(demo_files[0]), draft_model=demo_files[1], n_ctx=1024, verbose=False)
    create = instructor.patch(
        create=llama.create_chat_completion_openai_v1, mode=instructor.Mode.TOOLS
    )
    person = create(
        messages=[{"role": "user", "content": ASKED}],
        response_model=Person, max_tokens=80, temperature=0.0,
    )  # fmt: skip
    llama.close()
    assert isinstance(person, Person)


def test_the_server_of_llama_cpp_python(stands_in, demo_files):
    """Its app with our class: an answer, a stream, and a schema."""
    from fastapi.testclient import TestClient
    from llama_cpp.server.app import create_app
    from llama_cpp.server.settings import ModelSettings, ServerSettings

    settings = ModelSettings(model=str(demo_files[0]), n_ctx=1024, verbose=False)
    app = create_app(server_settings=ServerSettings(), model_settings=[settings])
    question = {
        "messages": [{"role": "user", "content": ASKED}], "max_tokens": 60, "temperature": 0.0,
    }  # fmt: skip
    with TestClient(app) as client:
        answer = client.post("/v1/chat/completions", json=question).json()
        text = answer["choices"][0]["message"]["content"]
        lines = client.post("/v1/chat/completions", json={**question, "stream": True}).text
        shape = {"type": "json_object", "schema": Person.model_json_schema()}
        shaped = client.post("/v1/chat/completions", json={**question, "response_format": shape})
    assert stands_in
    assert text
    parts = [line.removeprefix("data: ") for line in lines.splitlines() if line[:7] == "data: {"]
    said = [json.loads(part)["choices"][0]["delta"].get("content") or "" for part in parts]
    assert "".join(said)
    Person.model_validate_json(shaped.json()["choices"][0]["message"]["content"])


def test_llm(tmp_path, monkeypatch):
    """``llm -m dspark-gguf``: found by its entry point; a conversation goes on."""
    from llm.cli import cli

    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))

    def ask(*arguments):
        options = ["-o", "temperature", "0", "-o", "max_tokens", "12"]
        done = CliRunner().invoke(cli, [*arguments, *options])
        assert done.exit_code == 0, done.output
        return done.stdout.strip()

    first = ask("-m", "dspark-gguf", "Say hello.")
    assert first
    assert ask("-m", "dspark-gguf", "--no-stream", "Say hello.") == first
    assert ask("-c", "What did I ask you?")
