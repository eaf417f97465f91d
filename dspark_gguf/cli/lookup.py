"""``dspark-gguf lookup``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from dspark_gguf.cli.options import SectionedCommand, settings_from, settings_options
from dspark_gguf.cli.start import loaded, say
from dspark_gguf.visible import visible


@click.group()
def lookup() -> None:
    """Texts to copy drafts from, besides the conversation."""


@lookup.command(cls=SectionedCommand)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Store to write."
)
@click.option("--most", default=4_000_000, show_default=True, type=click.IntRange(1, 100_000_000),
              help="Most tokens to keep; 16 bytes each, on disk and in memory.")  # fmt: skip
@settings_options
def build(
    files: tuple[Path, ...],
    output: Path,
    most: int,
    config: str | None,
    show_config: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Make a store of your own FILES (and folders of files), for --lookup-store.

    It fits every model with the vocabulary of the one that is given with -m.
    """
    settings = settings_from(config, options)
    if show_config:
        click.echo(settings.as_yaml(), nl=False)
        return

    from dspark_gguf.draft import Store

    off = settings.speculation.model_copy(update={"mode": "off", "lookup_store": None})
    settings = settings.model_copy(update={"speculation": off})
    wanted = list(_files(files))
    with loaded(settings, verbose, quiet=True) as pair:
        texts = (
            pair.vocabulary.tokenize(text, special=False, add_bos=False) for text in _texts(wanted)
        )
        store = Store.of_texts(texts, most, pair.vocabulary.fingerprint)
    store.save(output)
    click.echo(visible(f"{len(store)} tokens: {output}"))


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    """The files that are named or lie in named folders, hidden ones left out."""
    from dspark_gguf.errors import UsageError

    for path in paths:
        if path.is_dir():
            inside = (file for file in sorted(path.rglob("*")) if file.is_file())
            yield from (
                file
                for file in inside
                if not any(part.startswith(".") for part in file.relative_to(path).parts)
            )
        elif path.exists():
            yield path
        else:
            raise UsageError("a file or a folder", f"nothing at {path}", "check the path")


def _texts(paths: Sequence[Path]) -> Iterator[str]:
    """What is text among them."""
    for path in paths:
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = "no text" if isinstance(error, UnicodeDecodeError) else error.strerror
            say(f"left out: {path} ({reason})")
            continue
        if "\0" in text:
            say(f"left out: {path} (no text)")
        elif text:
            yield text
