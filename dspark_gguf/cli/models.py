"""Commands about models: ``models``, ``inspect``, ``pull`` and ``suggest``."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import click

from dspark_gguf.cli.completion import VALUES
from dspark_gguf.cli.options import PAIR, SectionedCommand, debug, settings_options
from dspark_gguf.cli.start import say, show
from dspark_gguf.config import Settings
from dspark_gguf.errors import UsageError


@click.command()
@click.argument("name", required=False, shell_complete=VALUES["pair"])
@click.option("--local", is_flag=True, help="List other programs' GGUF files on this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
@debug
def models(name: str | None, local: bool, as_json: bool) -> None:
    """List pairs of target and draft that people use, or show everything about the pair NAME.

    With --local, list the models that Ollama, LM Studio, llama.cpp and the Hugging Face cache keep,
    then drafts that need their target, then files that are neither, and why.
    """
    from dspark_gguf.catalog import listing
    from dspark_gguf.catalog.local import local_files
    from dspark_gguf.catalog.pairs import known_pairs, similar_names
    from dspark_gguf.engine import library
    from dspark_gguf.learned import seconds_per_byte

    library.set_command_log()
    if local:
        if name:
            raise UsageError(f"--local takes no name, such as {name}", "Leave one of them out.")
        left_out: list[str] = []
        found = local_files(left_out)
        values = [{**asdict(model), "path": str(model.path)} for model in found]
        show(as_json, values, lambda: listing.local_text(found, left_out))
        return
    pairs = [pair for pair in known_pairs() if name is None or pair.is_called(name)]
    if not pairs and name is not None:
        problem = f"no pair is called {name!r}{similar_names(name)}"
        raise UsageError(problem, "See `dspark-gguf models`.")
    memory = listing.machine_gigabytes()
    speed = seconds_per_byte(library.machine())
    rows = [listing.facts(pair, memory, speed) for pair in pairs]
    show(
        as_json,
        rows,
        lambda: listing.pair_text(rows[0]) if name else listing.pairs_text(rows, memory),
    )


@click.command()
@click.argument("model", shell_complete=VALUES["model"])
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@debug
def inspect(model: str, as_json: bool) -> None:
    """Describe a GGUF without loading its weights; for a draft, also which target it fits.

    MODEL is a file, org/repo:quant, or a pair's name, which means its target.
    """
    from dspark_gguf.catalog import inspect as catalog
    from dspark_gguf.catalog.resolve import locate
    from dspark_gguf.engine import library

    library.set_command_log()
    facts = catalog.inspect(locate([(model, "target")], say)[0])
    show(as_json, facts, lambda: catalog.as_text(facts))


@click.command()
@click.argument("name", shell_complete=VALUES["pair"])
@debug
def pull(name: str) -> None:
    """Download a pair that `dspark-gguf models` lists, or one model as org/repo:quant.

    If a model's repository has a draft for it, such as mtp-*.gguf, that is downloaded too.

    Files go to huggingface_hub's cache (set HF_HOME to move it), with its tokens (HF_TOKEN, `hf
    auth login`) and its offline mode (HF_HUB_OFFLINE=1). A file whose SHA-256 differs from the
    hub's is deleted. The paths are printed on stdout.
    """
    from dspark_gguf.catalog.resolve import pull as download
    from dspark_gguf.engine import library

    library.set_command_log()
    try:
        paths = download(name, say)
    except KeyboardInterrupt:
        say("stopped; complete files are kept")
        raise
    for path in paths:
        click.echo(path)


@click.command(cls=SectionedCommand)
@click.option("--make-draft", type=click.Choice(["Q2_K", "Q4_0", "Q4_K_M", "Q8_0"]),
              help="Make this quantization of the target, for use as a draft.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
@settings_options(*PAIR, "speculation.draft_max")
def suggest(make_draft: str | None, as_json: bool, settings: Settings, verbose: bool) -> None:
    """List drafts that fit the target of -m, and the speed to expect from each on this machine.

    They are the drafts that `dspark-gguf models` lists, files on this machine, and lower
    quantizations of the target itself; -d adds one more. Drafts on this machine are measured, the
    others are estimated.
    """
    from dspark_gguf.catalog import listing
    from dspark_gguf.catalog import suggest as catalog
    from dspark_gguf.catalog.pairs import OWN_HEADS
    from dspark_gguf.catalog.resolve import locate, resolve
    from dspark_gguf.chat.progress import track
    from dspark_gguf.engine import library
    from dspark_gguf.engine.gguf import read_header

    library.set_command_log(verbose)
    drafts, model = [], settings.model or "demo"
    if settings.draft is None:
        [target] = locate([(model, "target")], say)
    else:
        target, draft = resolve(settings.model, settings.draft, say)
        if draft and (settings.draft, draft) != (OWN_HEADS, target):  # they are listed anyway
            drafts.append(catalog.of_file(settings.draft, "-d", draft))
    if make_draft:
        path = catalog.make_draft(target, make_draft, say)
        drafts.append(catalog.of_file(str(path), "made from the target", path))
    else:
        skipped: list[str] = []
        drafts += catalog.candidates(read_header(target), skipped)
        for line in skipped if verbose else ():
            say(f"does not fit: {line}")
    found = catalog.suggestions(target, drafts, settings, partial(track, title="measuring"))
    name = listing.quote(model)
    show(as_json, [each.as_dict() for each in found], lambda: catalog.as_text(name, found))
