"""Options are made from the settings, and a command has only those that it uses."""

from __future__ import annotations

import subprocess
import sys
from typing import Literal, get_args, get_origin

import click
import pytest
import yaml
from click.testing import CliRunner

from dspark_gguf import settings_part
from dspark_gguf.cli import main
from dspark_gguf.config import Settings


def fields(kind=Settings, place=()):
    """Path and field of every setting."""
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and hasattr(inner, "model_fields"):
            yield from fields(inner, (*place, name))
        else:
            yield (*place, name), field


def options(command):
    """The options by the place of what they set."""
    return {tuple(one.name.split("__")): one for one in command.params}


def shown(*words):
    """The settings that a command would use."""
    result = CliRunner().invoke(main, [*map(str, words), "--show-config"])
    assert result.exit_code == 0, result.output
    return yaml.safe_load(result.stdout)


@pytest.mark.parametrize("name", ["chat", "run"])
def test_every_setting_has_an_option(name):
    """With the help of the settings and their choices: written once."""
    found = options(main.commands[name])
    for place, field in fields():
        option = found[place]
        assert option.help.startswith(" ".join((field.description or "").split())), place
        choices = [field.annotation, *get_args(field.annotation)]
        for one in choices if isinstance(option.type, click.Choice) else ():
            if get_origin(one) is Literal:
                assert tuple(option.type.choices) == get_args(one)


def test_the_draft_has_each_option_of_the_target():
    """With d behind the short name and -draft behind the long one."""
    found = options(main.commands["run"])
    for (part, *rest), option in found.items():
        if part == "target_options":
            draft = found[("draft_options", *rest)]
            ends = ["-draft" if name.startswith("--") else "d" for name in option.opts]
            assert draft.opts == [a + b for a, b in zip(option.opts, ends, strict=True)]


@pytest.mark.parametrize(
    ("words", "place", "value"),
    [
        (["-m", "a.gguf"], "model", "a.gguf"),
        (["-md", "a.gguf"], "draft", "a.gguf"),
        (["--predict", 5], "limits.max_tokens", 5),
        (["--stop", "a,b", "--stop", "c"], "limits.stop", ["a,b", "c"]),
        (["--temp", 0.5], "sampling.temperature", 0.5),
        (["-s", 7], "sampling.seed", 7),
        (["-j", "{}"], "sampling.json_schema", "{}"),
        (["--ignore-eos"], "sampling.ignore_eos", True),
        (["--logit-bias", "5-1.5", "--logit-bias", "6-inf"], "sampling.logit_bias",
         {"5": -1.5, "6": "-inf"}),
        (["--spec", "on"], "speculation.mode", "on"),
        (["--draft-p-min", 0.5], "speculation.draft_min_prob", 0.5),
        (["--no-learn"], "speculation.learn", False),
        (["-ngl", "all"], "target_options.n_gpu_layers", "all"),
        (["-ngld", 4], "draft_options.n_gpu_layers", 4),
        (["-c", 512], "target_options.n_ctx", 512),
        (["--ctx-size-draft", 256], "draft_options.n_ctx", 256),
        (["-ctk", "q8_0"], "target_options.cache_type_k", "q8_0"),
        (["--no-mmap"], "target_options.mmap", False),
        (["-ts", "3, 1"], "target_options.tensor_split", [3.0, 1.0]),
        (["-devd", "CUDA0,CPU"], "draft_options.devices", ["CUDA0", "CPU"]),
        (["--think"], "chat.think", True),
        (["-sys", "größe"], "chat.system", "größe"),
    ],
)  # fmt: skip
def test_what_is_typed_becomes_the_setting(words, place, value):
    """Short names, other names and spellings that YAML does not have."""
    found = shown("run", *words)
    for key in place.split("."):
        found = found[key]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("profile", "--top-k"), ("profile", "--system"), ("trace", "--temp"),
        ("calibrate", "--spec"), ("suggest", "--acceptance"), ("doctor", "--stop"),
        ("bench", "--no-learn"), ("bench", "--context-shift"), ("lookup build", "--temp"),
        ("lookup build", "-d"),
    ],
)  # fmt: skip
def test_an_option_without_a_use_is_refused(command, option):
    """Not accepted and ignored."""
    result = CliRunner().invoke(main, [*command.split(), option, "1"])
    assert result.exit_code == 2
    assert "No such option" in result.stderr


def test_options_of_a_brief_command_are_named():
    """What loads a model is explained once, in `run --help-all`; its names are everywhere."""
    for name in ("run", "profile", "doctor", "bench"):
        text = CliRunner().invoke(main, [name, "--help-all"]).stdout
        for option in main.commands[name].params:
            if (option.name or "").startswith("target_options"):
                assert option.opts[-1] in text
        assert ("Frequency scale of RoPE" in text) == (name == "run")
        assert "--gpu-layers-draft" in text


@pytest.mark.parametrize("name", ["chat", "run", "serve", "bench", "profile", "suggest"])
def test_help_has_the_frequent_options_and_help_all_the_others(name):
    """Both end well; what is hidden is said, and is shown by the other."""
    short, whole = (CliRunner().invoke(main, [name, word]) for word in ("--help", "--help-all"))
    assert (short.exit_code, whole.exit_code) == (0, 0)
    assert f"{name} --help-all`." in short.stdout.splitlines()[-1]
    assert "More options" not in whole.stdout
    assert len(short.stdout.splitlines()) < 100
    for option in main.commands[name].params:
        is_own = not isinstance(option, click.Option) or "__" not in (option.name or "")
        if isinstance(option, click.Option) and not option.hidden:
            assert option.opts[-1] in whole.stdout or "draft_options" in (option.name or "")
            assert not is_own or option.opts[-1] in short.stdout
    assert "--ctx-size" in short.stdout
    assert "--mlock" not in short.stdout


def test_a_renamed_value_is_accepted_and_said():
    """Not offered any more."""
    settings_part._say_renamed.cache_clear()
    result = CliRunner().invoke(main, ["run", "--acceptance", "ratio", "--show-config"])
    assert yaml.safe_load(result.stdout)["speculation"]["acceptance"] == "rejection"
    assert result.stderr == "acceptance ratio is now called rejection\n"
    said = CliRunner().invoke(main, ["run", "--help-all"]).stdout
    assert "[match|rejection|typical|threshold]" in said


def test_the_commands_without_their_script():
    """As ``python -m dspark_gguf``."""
    command = [sys.executable, "-m", "dspark_gguf", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith("dspark-gguf")
