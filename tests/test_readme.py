"""What the README shows is true."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

from dspark_gguf.chat.commands import _COMMANDS
from dspark_gguf.cli import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def test_the_python_example_runs(demo_files, capsys):
    """The examples are executed as they stand, the second with the demo pair's files."""
    code, drop_in = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(code.strip().splitlines()) <= 10
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert re.search(r"(stop|length) \d\.\d", printed.splitlines()[-1])
    for name, file in zip(("target.gguf", "draft.gguf"), demo_files, strict=True):
        drop_in = drop_in.replace(name, str(file))
    names = {}
    exec(compile(drop_in.replace("4096", "512, verbose=False"), "README.md", "exec"), names)
    names["llama"].close()


def test_every_option_that_is_named_exists():
    """A flag in the README that the program does not know would be a lie."""
    commands = ("run", "profile", "replay", "trace", "calibrate", "bench")
    shown = "".join(CliRunner().invoke(main, [name, "--help"]).output for name in commands)
    ours = README.replace("pip install --force-reinstall --no-cache-dir", "")
    for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", ours)):
        assert flag in shown, flag


def test_every_slash_command_that_is_named_exists():
    """The README and /help speak of the same commands."""
    for name in set(re.findall(r"`/([a-z]+)", README)):
        assert name in _COMMANDS, name


def test_top_level_is_complete():
    """A newcomer finds every part of the project's top level."""
    files = "pyproject.toml models.txt CHANGELOG.md CONTRIBUTING.md LICENSE .ci/run"
    folders = "configs dspark_gguf docs scripts tests"
    for name in f"{files} {folders}".split():
        assert (ROOT / name).exists(), name
