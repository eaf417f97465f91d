"""docs/cli.md is what the program says."""

from __future__ import annotations

import click
from click.testing import CliRunner

from dspark_gguf.cli import main
from tests.tiny.test_scripts import script

RENEW = "run: python scripts/render_cli_help.py"


def test_the_docs_are_what_help_says():
    """Byte by byte; whoever changes an option renders it again."""
    render = script("render_cli_help")
    assert render.DOCS.read_text("utf-8") == render.rendered(), RENEW


def test_every_command_is_there_whatever_the_terminal(monkeypatch):
    """Groups and what is in them, in a width that does not come from the terminal."""
    render = script("render_cli_help")
    text = render.rendered()
    for name, command in main.commands.items():
        assert f"\n## dspark-gguf {name}\n" in text
        for inner in getattr(command, "commands", ()):
            assert f"\n## dspark-gguf {name} {inner}\n" in text
    monkeypatch.setenv("COLUMNS", "40")
    assert render.rendered() == text
    assert max(map(len, text.splitlines())) <= render.WIDTH


def test_a_changed_option_is_noticed(monkeypatch):
    """What is compared does depend on the options."""
    render = script("render_cli_help")
    before = render.rendered()
    option = next(one for one in main.commands["run"].params if one.name == "check")
    monkeypatch.setattr(option, "help", "Something else.")
    assert render.rendered() != before
    assert isinstance(option, click.Option)
    assert "Something else." in CliRunner().invoke(main, ["run", "--help"]).output


def test_every_command_is_in_a_group_and_on_one_line():
    """With a summary that is not cut off at 80 columns."""
    said = CliRunner().invoke(main, ["--help"], terminal_width=80).stdout
    assert "..." not in said.partition("Talk:")[2]
    listed = [
        line.split()[0] for line in said.partition("Talk:")[2].splitlines() if line[:2] == "  "
    ]
    assert sorted(listed) == sorted(main.commands)
