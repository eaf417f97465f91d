"""Write what `--help-all` of every command says into docs/cli.md.

    python scripts/render_cli_help.py

A test compares that file with what this renders, so it is run again whenever an option changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from dspark_gguf.cli import main
from dspark_gguf.cli.options import ALL_OPTIONS

PROGRAM = "dspark-gguf"
DOCS = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
#: Columns, whatever the terminal has.
WIDTH = 100

HEAD = """# The command line

What `--help-all` of every command says (`--help` has the frequent options alone). Written by
`python scripts/render_cli_help.py`: run it again after changing an option.
"""


def rendered() -> str:
    """The whole file."""
    parts = [HEAD]
    for context in _contexts(main, None, PROGRAM):
        parts.append(f"\n## {context.command_path}\n\n```\n{context.get_help()}\n```\n")
    return "".join(parts)


def _contexts(
    command: click.Command, parent: click.Context | None, name: str
) -> Iterator[click.Context]:
    """Of a command and all commands below it, in the order of their help."""
    context = click.Context(command, parent, name, terminal_width=WIDTH, **command.context_settings)
    context.meta[ALL_OPTIONS] = True
    yield context
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None
            yield from _contexts(found, context, child)


if __name__ == "__main__":
    DOCS.write_text(rendered(), encoding="utf-8")
    print(DOCS)
