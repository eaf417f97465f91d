"""``dspark-gguf lookup``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import click

from dspark_gguf.cli.options import FILE, SectionedCommand, settings_options
from dspark_gguf.cli.start import open_pair, say
from dspark_gguf.config import Settings, Speculation
from dspark_gguf.errors import UsageError
from dspark_gguf.paths import require_writable
from dspark_gguf.visible import visible


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
    """Make a file for --lookup-store out of your own FILES and folders.

    It works with every model that has the vocabulary of the one given with -m.
    """
    from dspark_gguf.draft import Store

    settings = settings.model_copy(update={"speculation": Speculation(mode="off")})
    wanted = list(_files(files))
    require_writable(output)
    with open_pair(settings, verbose, quiet=True) as pair:
        tokenize = partial(pair.vocabulary.tokenize, special=False, add_bos=False)
        store = Store.of_texts(map(tokenize, _texts(wanted)), most, pair.vocabulary.fingerprint)
    store.save(output)
    click.echo(visible(f"{len(store)} tokens: {output}"))


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    """Named files, and those in named folders but for hidden ones."""
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
    """The text of each file that has some."""
    for path in paths:
        try:
            text = path.read_text("utf-8")
            wrong = "not text" if "\0" in text else None
        except UnicodeDecodeError:
            wrong = "not text"
        except OSError as error:
            wrong = error.strerror or "not readable"
        if wrong:
            say(f"left out: {path} ({wrong})")
        elif text:
            yield text
