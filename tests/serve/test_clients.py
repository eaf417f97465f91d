"""Other people's clients: LangChain and `llm`."""

from __future__ import annotations

import pytest

from tests.serve.running import running
from tests.serve.scripted import write_script
from tests.serve.test_rules import CALLS, PLAIN, TOOLS


@pytest.fixture(scope="module")
def caller(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "caller.gguf"
    with running([write_script(path, CALLS)], settings=PLAIN) as one:
        yield one


def test_langchain(server, caller):
    chat = pytest.importorskip("langchain_openai").ChatOpenAI
    options = {"model": "x", "api_key": "x", "max_retries": 0}
    model = chat(base_url=f"{server.url}/v1", max_tokens=12, **options)
    whole = model.invoke("hello")
    chunks = list(model.stream("hello"))
    assert "".join(chunk.content for chunk in chunks) == whole.content
    assert whole.usage_metadata["output_tokens"] == 12
    total = chunks[0]
    for chunk in chunks[1:]:
        total = total + chunk
    assert total.usage_metadata["output_tokens"] == 12
    with_tools = chat(base_url=f"{caller.url}/v1", **options).bind_tools(TOOLS)
    called = with_tools.invoke("hello").tool_calls
    assert [each["args"] for each in called] == [{"a": 1}, {"a": 22}]
    total = None
    for chunk in with_tools.stream("hello"):
        total = chunk if total is None else total + chunk
    assert [each["args"] for each in total.tool_calls] == [{"a": 1}, {"a": 22}]


def test_llm(server):
    models = pytest.importorskip("llm.default_plugins.openai_models")
    model = models.Chat("tiny", model_name="x", api_base=f"{server.url}/v1")
    whole = model.prompt("hello", key="x", stream=False, max_tokens=10)
    streamed = model.prompt("hello", key="x", stream=True, max_tokens=10)
    assert "".join(streamed) == whole.text()
    assert streamed.usage().output == whole.usage().output == 10
