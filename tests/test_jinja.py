"""Hostile chat templates are refused or bounded; honest ones come out as llama-cpp-python's."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
from types import SimpleNamespace

import pytest
from llama_cpp.llama_chat_format import (
    CHATML_CHAT_TEMPLATE,
    MISTRAL_INSTRUCT_CHAT_TEMPLATE,
    MIXTRAL_INSTRUCT_CHAT_TEMPLATE,
    Jinja2ChatFormatter,
)

from dspark_gguf.engine import jinja
from dspark_gguf.engine.jinja import Renderer, TemplateRefused
from dspark_gguf.errors import EngineError, UsageError
from tests.tiny_gguf import TEMPLATE

TALK = [{"role": "user", "content": "Hi\n"}, {"role": "assistant", "content": "<é>"}]
VALUES = {
    "messages": TALK, "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True,
    "functions": None, "function_call": None, "tools": None, "tool_choice": None,
}  # fmt: skip
FEATURES = """
{%- set seen = namespace(count=0) %}
{% generation %}{% for m in messages %}
    {%- if m.role == 'system' %}{% continue %}{% endif %}
    {%- set seen.count = seen.count + 1 %}
{{ loop.index }}{{ m | tojson(indent=1) }}{{ m.content | trim }}{{ m.get('x', 'none') }}
{% if loop.last %}{% break %}{% endif %}{% endfor %}{% endgeneration %}
{%- macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{{ twice('a' ~ seen.count) }}
{{ strftime_now('%Y')[:2] }} {{ tools is none }} {{ '%s %d' | format('b', 2) }} {{ [1, 2] | sum }}
"""


@pytest.fixture(scope="module")
def quick():
    """A process that is given up soon."""
    renderer = Renderer(seconds=1.0)
    yield renderer
    renderer.stop()


@pytest.mark.parametrize(
    "source",
    [
        TEMPLATE, CHATML_CHAT_TEMPLATE, MISTRAL_INSTRUCT_CHAT_TEMPLATE,
        MIXTRAL_INSTRUCT_CHAT_TEMPLATE, FEATURES,
    ],
)  # fmt: skip
def test_what_is_honest_is_rendered_as_before(quick, source):
    """What llama-cpp-python's own formatter gives, in all that templates use."""
    formatter = Jinja2ChatFormatter(source, eos_token="</s>", bos_token="<s>")
    assert quick.render(source, VALUES) == formatter(messages=TALK).prompt


COSTLY = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}"
    "{% endfor %}{% endfor %}",
    "a long string": "{{ 'a' * 10**9 }}",
    "a long string at run time": "{{ ('a' ~ messages[0].role) * 10**10 }}",
    "a format": "{{ '%1000000000d' % 1 }}",
    "a filter": "{{ 'a' | center(10**9) }}",
    "a doubled string": "{% set n = namespace(x='a') %}{% for i in range(60) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a list": "{{ [0] * 10**9 }}",
    "a power": "{% set n = namespace(x=10) %}{% for i in range(40) %}{% set n.x = n.x * n.x %}"
    "{% endfor %}",
    "a text": "{% for i in range(99999) %}" + "a" * 200 + "{% endfor %}",
    "lorem ipsum": "{{ lipsum(n=10**7) }}",
}  # fmt: skip
FORBIDDEN = {
    "insides": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "insides of a function": "{{ raise_exception.__globals__['json'] }}",
    "a format's insides": "{{ '{0.__class__.__mro__}'.format(1) }}",
    "imports": "{% import 'os' as os %}",
    "a change": "{{ messages.append(1) }}",
    "a range": "{% for i in range(10**9) %}{% endfor %}",
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "deep nesting": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "no Jinja": "{% for %}",
}


@pytest.mark.parametrize("name", [*COSTLY, *FORBIDDEN])
def test_a_hostile_template_ends_with_a_message(quick, name):
    """Within its second, and the next rendering works."""
    source = {**COSTLY, **FORBIDDEN}[name]
    expected = (TemplateRefused, UsageError) if name in COSTLY else TemplateRefused
    with pytest.raises(expected):
        quick.render(source, VALUES)
    assert quick.render("{{ messages | length }}", VALUES) == "2"


def test_memory_is_bounded():
    """The system refuses more, however much time there is."""
    resource = pytest.importorskip("resource")
    patient = Renderer(seconds=60.0)
    with pytest.raises(TemplateRefused, match="MemoryError"):
        patient.render("{{ [messages | length] * 10**9 }}", VALUES)
    if hasattr(resource, "prlimit"):  # Linux
        limits = resource.prlimit(patient._process.pid, resource.RLIMIT_AS)
        assert limits == (jinja.MEBIBYTES * 1024**2,) * 2
    patient.stop()


def test_threads_share_the_process(quick):
    """Each gets its own answer."""
    got = {}

    def ask(k):
        got[k] = quick.render(f"{{{{ {k} * 2 }}}}", VALUES)

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {k: str(2 * k) for k in range(8)}


def test_a_process_that_died_is_replaced(quick):
    """Killed by whom ever between two renderings: the next one has a new one."""
    quick.render("a", {})
    first = quick._process
    os.kill(first.pid, 9)
    first.wait()
    assert quick.render("b", {}) == "b"
    assert quick._process is not first


def test_the_process_ends_with_its_last_rendering_not_while_it_waits(monkeypatch):
    """Its own alarm is for a rendering that nobody is left to stop; waiting has no end."""
    alarms, out = [], io.BytesIO()
    requests = [{}, {"source": "{{ x }}", "values": {"x": 1}}, {"source": "{{", "values": {}}]
    lines = b"".join(json.dumps(request).encode() + b"\n" for request in requests)
    monkeypatch.setattr(signal, "alarm", alarms.append, raising=False)
    monkeypatch.setattr(jinja, "_limit_memory", lambda: None)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(lines)))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=out))
    jinja.serve()
    answers = [json.loads(line) for line in out.getvalue().splitlines()]
    assert answers[:2] == [{}, {"text": "1"}]
    assert "error" in answers[2]
    assert alarms == [30, 0] * 3


def test_an_interrupted_question_leaves_no_answer_behind(quick, monkeypatch):
    """After a Ctrl-C the next text is not that of the question before."""

    class Timer(threading.Timer):
        def cancel(self):
            super().cancel()
            monkeypatch.undo()

        def start(self):
            super().start()
            raise KeyboardInterrupt

    monkeypatch.setattr(threading, "Timer", Timer)
    with pytest.raises(KeyboardInterrupt):
        quick.render("first", {})
    monkeypatch.undo()
    assert quick.render("second", {}) == "second"


def test_no_python_no_template(monkeypatch):
    """A frozen program without a Python of its own says so."""
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    with pytest.raises(EngineError, match="a Python process that renders"):
        Renderer().render("a", {})
