"""Conversations as text."""

from __future__ import annotations

import pytest

from dspark_gguf.config import ModelOptions
from dspark_gguf.engine.model import Model
from dspark_gguf.engine.template import ChatTemplate
from dspark_gguf.errors import UsageError
from tests.tiny_gguf import Tiny, write_llama

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
]


@pytest.fixture(scope="module")
def model(tiny_files):
    return Model(tiny_files.target, ModelOptions())


def test_the_models_own_template(model):
    """The template in the GGUF is rendered, and its special tokens are read as such."""
    template = ChatTemplate(model)
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert template.render(TALK) == text + "<|im_start|>assistant\n"
    assert template.encode(TALK)[0] == 261
    assert template.notes == []


def test_no_template_means_chatml_and_a_note(tmp_path):
    """A base model can be talked to, and the user is told what was assumed."""
    bare = Model(write_llama(tmp_path / "bare.gguf", Tiny(template=None)), ModelOptions())
    template = ChatTemplate(bare)
    assert "<|im_start|>user\nHi<|im_end|>" in template.render(TALK)
    assert "has no chat template" in template.notes[0]


@pytest.mark.parametrize("blank", ["", " \n"])
def test_a_blank_template_is_none(model, tmp_path, blank):
    """In the file: as without one. As --chat-template, text or file: as without the option."""
    bare = Model(write_llama(tmp_path / "bare.gguf", Tiny(template=blank)), ModelOptions())
    template = ChatTemplate(bare)
    assert "<|im_start|>user\nHi<|im_end|>" in template.render(TALK)
    assert "has no chat template" in template.notes[0]
    path = tmp_path / "template.jinja"
    path.write_text(blank)
    for override in (blank, str(path)):
        assert ChatTemplate(model, override).source == ChatTemplate(model).source


def test_a_template_that_writes_nothing(model):
    """It is said of the template, not of what was typed."""
    with pytest.raises(UsageError, match="writes nothing"):
        ChatTemplate(model, "{# later #}").encode(TALK)


def test_override_by_text_and_by_file(model, tmp_path):
    """--chat-template takes Jinja or a file with it."""
    source = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    assert ChatTemplate(model, source).render(TALK) == "[Be brief.][Hi]"
    path = tmp_path / "template.jinja"
    path.write_text(source)
    assert ChatTemplate(model, str(path)).render(TALK) == "[Be brief.][Hi]"
    with pytest.raises(UsageError, match="--chat-template"):
        ChatTemplate(model, "missing.jinja")
    with pytest.raises(UsageError, match="Jinja"):
        ChatTemplate(model, "{% for %}")


def test_a_template_without_a_system_role(model):
    """Gemma's kind: the system prompt opens the first turn."""
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "[{{ m.role }} {{ m.content }}]{% endfor %}"
    )
    assert ChatTemplate(model, source).render(TALK) == "[user Be brief.\n\nHi]"
    with pytest.raises(UsageError, match="not supported"):
        ChatTemplate(model, source).render(TALK[:1])


def test_thinking_is_switched(model):
    """enable_thinking reaches the template only when the user chose."""
    source = "{{ 'default' if enable_thinking is not defined else enable_thinking }}"
    template = ChatTemplate(model, source)
    assert template.switches_thinking
    assert [template.render(TALK, think) for think in (None, True, False)] == [
        "default", "True", "False",
    ]  # fmt: skip
    assert not ChatTemplate(model).switches_thinking


def test_the_first_token_comes_once(tmp_path):
    """A model that begins with BOS gets one, whether the template writes it or not."""
    bos = Model(write_llama(tmp_path / "bos.gguf", Tiny(add_bos=True)), ModelOptions())
    silent = ChatTemplate(bos, "{{ messages[0].content }}")
    writes = ChatTemplate(bos, "{{ bos_token }}{{ messages[0].content }}")
    assert silent.encode(TALK)[0] == bos.vocabulary.bos
    assert silent.encode(TALK) == writes.encode(TALK)


@pytest.mark.parametrize("add_bos", [False, True])
def test_no_flag_of_the_tokenizer_ends_a_prompt(tmp_path, add_bos):
    """With `add_eos_token` the same tokens: the first one by the rule above, none at the end."""
    wanted, found = (
        ChatTemplate(
            Model(
                write_llama(tmp_path / f"{add_eos}.gguf", Tiny(add_bos=add_bos, add_eos=add_eos)),
                ModelOptions(),
            )
        ).encode(TALK)
        for add_eos in (False, True)
    )
    assert found == wanted


def test_a_hostile_template_is_sandboxed(model):
    """A template cannot reach Python's insides."""
    with pytest.raises(UsageError):
        ChatTemplate(model, "{{ ''.__class__.__mro__[1].__subclasses__() }}").render(TALK)
