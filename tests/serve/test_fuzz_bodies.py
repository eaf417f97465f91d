"""Bodies of any kind: never a 500, never a dead engine."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["user", "text", "auto", "function", "json_schema", "object", "hello",
                       "tool_result", "document", "content", "reasoning", "allowed_tools"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["role", "content", "type", "text", "name", "function", "parameters",
                         "schema", "json_schema", "properties", "items", "enum", "const",
                         "source", "data", "mode", "tools", "summary"]),
        inner,
        max_size=4,
    ),
    max_leaves=8,
)  # fmt: skip
FIELDS = {
    "/v1/chat/completions": [
        "messages", "temperature", "top_p", "top_k", "seed", "stop", "n", "logit_bias", "tools",
        "guided_json", "tool_choice", "response_format", "json_schema", "grammar", "logprobs",
        "top_logprobs", "stream_options", "repeat_last_n", "chat_template_kwargs",
        "max_completion_tokens", "reasoning_effort", "structured_outputs", "functions", "best_of",
    ],
    "/v1/completions": ["prompt", "suffix", "echo", "logprobs", "stop", "n", "min_p"],
    "/v1/responses": ["input", "instructions", "tools", "tool_choice", "text", "reasoning"],
    "/v1/messages": [
        "messages", "system", "stop_sequences", "tools", "tool_choice", "thinking", "output_config",
    ],
    "/v1/messages/count_tokens": ["messages", "system", "tools"],
    "/tokenize": ["content", "add_special", "with_pieces"],
    "/detokenize": ["tokens"],
}  # fmt: skip
GOOD = {
    "messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "input": "hi",
    "max_tokens": 2, "max_output_tokens": 2,
}  # fmt: skip


@settings(
    max_examples=150, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(st.data())
def test_any_body_is_answered_or_refused(server, data):
    path = data.draw(st.sampled_from(list(FIELDS)))
    changed = data.draw(st.dictionaries(st.sampled_from(FIELDS[path]), VALUES, max_size=3))
    changed.pop("max_completion_tokens", None)
    stream = data.draw(st.booleans())
    content = _json({**GOOD, "stream": stream, **changed})
    kind = {"content-type": "application/json"}
    answer = server.http.post(path, content=content, headers=kind)
    assert answer.status_code in (200, 400, 413), (path, changed, answer.text)
    assert "unexpected" not in answer.text, (path, changed, answer.text)
    assert server.http.get("/health").status_code == 200


def _json(value):
    import json

    return json.dumps(value).encode()
