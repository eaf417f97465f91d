"""``dspark-gguf completion``, and the values that shells complete."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    get_completion_class,
)

#: A space that bash keeps; click's script strips one of the two backslashes.
_BLANK = r"\\ "


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
@click.pass_context
def completion(context: click.Context, /, shell: str) -> None:
    """Print the script that lets SHELL complete commands, options, models and presets.

    \b
    bash:  eval "$(dspark-gguf completion bash)"       in ~/.bashrc
    zsh:   eval "$(dspark-gguf completion zsh)"        in ~/.zshrc, after compinit
    fish:  dspark-gguf completion fish > ~/.config/fish/completions/dspark-gguf.fish
    """  # noqa: D301 - click wants the character
    kind = get_completion_class(shell)
    assert kind is not None  # click has all three
    program = kind(context.find_root().command, {}, "dspark-gguf", "_DSPARK_GGUF_COMPLETE")
    click.echo(program.source())


class _Bash(BashComplete):
    def format_completion(self, item: CompletionItem) -> str:
        """As click does, but with escaped spaces, at which bash would split."""
        return f"{item.type},{item.value.replace(' ', _BLANK)}"


add_completion_class(_Bash)


def presets(context: click.Context, parameter: click.Parameter, word: str) -> list[CompletionItem]:
    """Names for --config, and YAML files; also behind a comma."""
    from dspark_gguf.settings_files import preset_names

    before, comma, last = word.rpartition(",")
    names = [name for name in preset_names() if name.startswith(last)]
    names += _files(last, (".yaml", ".yml"))
    return [CompletionItem(before + comma + name) for name in names]


def pairs(context: click.Context, parameter: click.Parameter, word: str) -> list[CompletionItem]:
    """Pairs of models.txt by name."""
    from dspark_gguf.catalog.pairs import known_pairs

    found = [pair for pair in known_pairs() if pair.name.startswith(word)]
    return [CompletionItem(pair.name, help=pair.note) for pair in found]


def models(context: click.Context, parameter: click.Parameter, word: str) -> list[CompletionItem]:
    """Pairs of models.txt by name, GGUF files, and the folders on the way to them."""
    files = [CompletionItem(name) for name in _files(word, (".gguf",))]
    return pairs(context, parameter, word) + files


def _files(word: str, endings: tuple[str, ...], deepest: int = 8) -> list[str]:
    """Files and folders that begin with a word; if there is only one folder, what is in it.

    Shells add a space after a single match, but a folder's name is not the end of a path. The depth
    is limited because a link can lead back to its own folder.
    """
    head, _, start = word.rpartition("/")
    head += "/" * ("/" in word)
    found = []
    with suppress(OSError):
        for entry in sorted(Path(os.path.expanduser(head)).iterdir()):
            hidden = entry.name.startswith(".") and not start.startswith(".")
            if entry.name.startswith(start) and not hidden:
                if entry.is_dir():
                    found.append(f"{head}{entry.name}/")
                elif entry.name.lower().endswith(endings):
                    found.append(head + entry.name)
    if deepest and len(found) == 1 and found[0].endswith("/"):
        return _files(found[0], endings, deepest - 1)
    return found


#: Parameters with values to complete: name -> what lists the values.
VALUES: dict[str, Any] = {"config": presets, "model": models, "draft": models, "pair": pairs}
