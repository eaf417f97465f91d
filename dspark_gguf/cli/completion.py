"""``dspark-gguf completion``, and the values that shells complete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    get_completion_class,
)

#: Most folders to descend into at once: a link can lead back to its folder.
_DEEPEST = 8
#: A blank that bash keeps; click's script strips one backslash of the two.
_BLANK = r"\\ "
_PROGRAM, _VARIABLE = "dspark-gguf", "_DSPARK_GGUF_COMPLETE"


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
    click.echo(kind(context.find_root().command, {}, _PROGRAM, _VARIABLE).source())


class _Bash(BashComplete):
    def format_completion(self, item: CompletionItem) -> str:
        """As click does, with blanks escaped, at which bash would split."""
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


def _files(word: str, endings: tuple[str, ...]) -> list[str]:
    """Files and folders that begin with a word; if that is a single folder, what is in it.

    Shells put a blank behind the only match, but a folder's name is not the end.
    """
    found = list(_entries(word, endings))
    for _ in range(_DEEPEST):
        if len(found) != 1 or not found[0].endswith("/"):
            break
        found = list(_entries(found[0], endings))
    return found


def _entries(word: str, endings: tuple[str, ...]) -> Iterator[str]:
    head, _, start = word.rpartition("/")
    head += "/" * ("/" in word)
    try:
        entries = sorted(os.scandir(Path(head).expanduser() or "."), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        hidden = entry.name.startswith(".") and not start.startswith(".")
        if hidden or not entry.name.startswith(start):
            continue
        if entry.is_dir():
            yield f"{head}{entry.name}/"
        elif entry.name.lower().endswith(endings):
            yield head + entry.name


#: Parameters with values to complete: name -> what lists the values.
VALUES: dict[str, Any] = {"config": presets, "model": models, "draft": models, "pair": pairs}
