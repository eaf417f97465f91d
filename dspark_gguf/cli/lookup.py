"""``dspark-gguf lookup``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from zipfile import is_zipfile

import click

from dspark_gguf.cli.options import FILE, SectionedCommand, settings_options
from dspark_gguf.cli.start import open_pair, say
from dspark_gguf.config import Settings, Speculation
from dspark_gguf.errors import UsageError, reason_of
from dspark_gguf.paths import GIB, read_whole, require_writable
from dspark_gguf.visible import counted, visible


@click.group()
def lookup() -> None:
    """Prepare texts to copy drafts from, besides the conversation."""


@lookup.command(cls=SectionedCommand)
@click.argument("files", nargs=-1, required=True, type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="File to write.")
@click.option("--most", default=4_000_000, show_default=True, type=click.IntRange(1, 100_000_000),
              help="Maximum tokens; each takes 16 bytes, on disk and in memory.")  # fmt: skip
@settings_options("model", "target_options")
def build(
    files: tuple[Path, ...], output: Path, most: int, settings: Settings, verbose: bool
) -> None:
    """Make a file for --lookup-store from your own FILES and folders.

    It works with every model that has the same vocabulary as the one given with -m.
    """
    from dspark_gguf.draft import Store

    settings = settings.model_copy(update={"speculation": Speculation(mode="off")})
    wanted = list(_files(files))
    older = is_zipfile(output)  # a store in a folder of texts is none of them
    if output.exists() and not older and any(map(output.samefile, wanted)):
        raise UsageError(f"{output} is one of the texts", "Name another file with -o.")
    require_writable(output)
    with open_pair(settings, verbose, quiet=True) as pair:
        tokenize = partial(pair.vocabulary.tokenize, special=False, add_bos=False)
        store = Store.of_texts(map(tokenize, _texts(wanted)), most, pair.vocabulary.fingerprint)
    if len(store) == 1:  # the end of no text
        raise UsageError("there is no text in these files", "Name files with text in UTF-8.")
    store.save(output)
    click.echo(visible(f"{counted(len(store), 'token')}: {output}"))


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    """The named files, and those in named folders except for hidden ones."""
    for path in paths:
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
                if file.is_file() and not hidden:
                    yield file
        elif path.exists():
            yield path
        else:
            raise UsageError(f"there is no file or folder {path}", "Check the path.")


def _texts(paths: Sequence[Path]) -> Iterator[str]:
    """The text of each file that has any."""
    for path in paths:
        try:
            text = read_whole(path, GIB).decode("utf-8").replace("\r\n", "\n")
            if "\0" in text:
                raise ValueError("not text")
        except (OSError, ValueError) as error:
            say(f"left out: {path} ({reason_of(error)})")
            continue
        if text:
            yield text
