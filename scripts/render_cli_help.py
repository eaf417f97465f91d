"""Write the output of `--help-all` of every command to docs/cli.md.

    python scripts/render_cli_help.py

Run it again after changing an option: a test compares the file with the current help.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from dspark_gguf.cli import main
from dspark_gguf.cli.options import ALL_OPTIONS

PROGRAM = "dspark-gguf"
DOCS = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
#: Columns, regardless of the terminal.
WIDTH = 100

HEAD = """# The command line

What `--help-all` of every command prints; `--help` shows only the most used options. Written by
`python scripts/render_cli_help.py`: run it again after changing an option.
"""


def rendered() -> str:
    """The text of docs/cli.md."""
    parts = [HEAD]
    for context in _contexts(main, None, PROGRAM):
        parts.append(f"\n## {context.command_path}\n\n```\n{context.get_help()}\n```\n")
    return "".join(parts)


def _contexts(
    command: click.Command, parent: click.Context | None, name: str
) -> Iterator[click.Context]:
    """The contexts of a command and of all its subcommands, in the order of its help."""
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
