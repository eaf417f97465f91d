"""Hostile chat templates reach nothing; honest ones come out as llama-cpp-python's."""

from __future__ import annotations

import pytest
from llama_cpp.llama_chat_format import (
    CHATML_CHAT_TEMPLATE,
    MISTRAL_INSTRUCT_CHAT_TEMPLATE,
    MIXTRAL_INSTRUCT_CHAT_TEMPLATE,
    Jinja2ChatFormatter,
)

from dspark_gguf.config import ModelOptions
from dspark_gguf.engine.model import Model
from dspark_gguf.engine.template import ChatTemplate
from dspark_gguf.errors import UsageError
from tests.children import run_python
from tests.tiny_gguf import TEMPLATE

TALK = [{"role": "user", "content": "Hi\n"}, {"role": "assistant", "content": "<é>"}]
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
FORBIDDEN = {
    "insides": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "insides of a function": "{{ raise_exception.__globals__['json'] }}",
    "a format's insides": "{{ '{0.__class__.__mro__}'.format(1) }}",
    "imports": "{% import 'os' as os %}",
    "a file": "{% include '/etc/passwd' %}",
    "a change": "{{ messages.append(1) }}",
    "a range": "{% for i in range(10**9) %}{% endfor %}",
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "deep nesting": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "no Jinja": "{% for %}",
    "a text": "{% for i in range(99999) %}" + "a" * 200 + "{% endfor %}",
}


@pytest.fixture(scope="module")
def model(tiny_files):
    return Model(tiny_files.target, ModelOptions())


@pytest.mark.parametrize(
    "source",
    [
        TEMPLATE, CHATML_CHAT_TEMPLATE, MISTRAL_INSTRUCT_CHAT_TEMPLATE,
        MIXTRAL_INSTRUCT_CHAT_TEMPLATE, FEATURES,
    ],
)  # fmt: skip
def test_what_is_honest_is_rendered_as_by_a_llama(model, source):
    """The drop-in uses llama-cpp-python's formatter: the commands say the same, in all of it."""
    bos, eos = (
        model.vocabulary.text(token).decode()
        for token in (model.vocabulary.bos, model.vocabulary.eos)
    )
    formatter = Jinja2ChatFormatter(source, eos_token=eos, bos_token=bos)
    assert ChatTemplate(model, source).render(TALK) == formatter(messages=TALK).prompt


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_hostile_template_ends_with_a_message(model, name):
    """It reaches nothing, and what it was given is as before."""
    talk = [dict(message) for message in TALK]
    with pytest.raises(UsageError):
        ChatTemplate(model, FORBIDDEN[name]).render(talk)
    assert talk == TALK


def test_ctrl_c_ends_a_template_that_does_not_end(tiny_files):
    """No error of the template: it is the user's."""
    program = f"""
import signal, threading
from dspark_gguf.config import ModelOptions
from dspark_gguf.engine.model import Model
from dspark_gguf.engine.template import ChatTemplate
loops = "{{% for a in range(99999) %}}" * 3 + "{{% endfor %}}" * 3
template = ChatTemplate(Model({str(tiny_files.target)!r}, ModelOptions()), loops)
threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
try:
    template.render([{{"role": "user", "content": "Hi"}}])
except KeyboardInterrupt:
    print("interrupted")
"""
    assert run_python("-c", program).stdout == "interrupted\n"
