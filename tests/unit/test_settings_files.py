"""Settings in files: what may be left out, and what is said of what is wrong."""

from __future__ import annotations

import pytest

from dspark_gguf.config import Settings, Speculation
from dspark_gguf.errors import UsageError
from dspark_gguf.settings_files import load_settings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sampling: {temperature: hot}",
         "sampling.temperature in FILE is 'hot'. It takes a number."),
        ("sampling: {top_k: 2.5}", "sampling.top_k in FILE is 2.5. It takes a whole number."),
        ("chat: {markdown: perhaps}", "chat.markdown in FILE is 'perhaps'. It takes on or off."),
        ("chat: {system: 3}", "chat.system in FILE is 3. It takes text."),
        ("limits: {stop: 3}", "limits.stop in FILE is 3. It takes a list."),
        ("sampling: 3", "sampling in FILE is 3. It takes keys with values."),
        ("speculation: {mode: 3}", "speculation.mode in FILE is 3. It takes on, off or auto."),
        ("?", "unknown setting 'None' in FILE. Use one of: chat, "),
        ("1: 2", "unknown setting '1' in FILE. Use one of: chat, "),
        ("smapling: {}", "unknown setting 'smapling' in FILE. Did you mean sampling? Use one of: "),
        ("chat: {markdwon: on}",
         "unknown setting 'chat.markdwon' in FILE. Did you mean markdown? "),
        ("sampling: {grammar: a, json_schema: b}",
         "--grammar and --json-schema exclude each other. Leave one out."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_users_words(tmp_path, text, said):
    """Not in pydantic's."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_settings(str(path), {})
    assert str(caught.value).replace(f"--config {path}", "FILE").startswith(said)


def test_on_and_off_need_no_quotes(tmp_path):
    """YAML 1.1 reads them as truth values: for every setting that has these words."""
    path = tmp_path / "mine.yaml"
    path.write_text("speculation: {mode: off}\ntarget_options: {flash_attn: on, mmap: off}\n")
    settings = load_settings(str(path), {})
    assert settings.speculation.mode == "off"
    assert (settings.target_options.flash_attn, settings.target_options.mmap) == ("on", False)


def test_a_section_without_settings_changes_nothing(tmp_path):
    """All of its lines are commented out."""
    path = tmp_path / "mine.yaml"
    path.write_text("sampling:\n  # temperature: 0\nmodel:\n")
    settings = load_settings(str(path), {}, {"model": "a.gguf", "sampling": {"top_k": 5}})
    assert (settings.sampling.top_k, settings.model) == (5, None)


def test_a_setting_that_is_a_dictionary_is_replaced():
    """As every other setting."""
    below = {"sampling": {"logit_bias": {5: 1.0}, "top_k": 3}}
    settings = load_settings(None, {"sampling": {"logit_bias": {6: 2.0}}}, below)
    assert (settings.sampling.logit_bias, settings.sampling.top_k) == ({6: 2.0}, 3)


@pytest.mark.parametrize("name", ["grammar", "json_schema"])
def test_an_empty_grammar_is_none(name):
    """As an empty chat template."""
    assert getattr(Settings(sampling={name: " "}).sampling, name) is None
    assert Speculation(lookup_store="").lookup_store is None


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("code,,", "--config '' is neither a preset nor a YAML file. The presets are "),
        ("cdoe", "--config 'cdoe' is neither a preset nor a YAML file. Did you mean code? "),
        ("FOLDER", "cannot read FOLDER as YAML: Is a directory. Correct the file."),
    ],
)
def test_what_is_no_file_is_refused_in_words(tmp_path, config, said):
    """Without numbers of errors."""
    with pytest.raises(UsageError) as caught:
        load_settings(config.replace("FOLDER", str(tmp_path)), {})
    assert str(caught.value).replace(str(tmp_path), "FOLDER").startswith(said)
