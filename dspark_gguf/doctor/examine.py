"""All checks in order: a failed one costs only those that need what it would have found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dspark_gguf.config import Settings
from dspark_gguf.doctor import machine
from dspark_gguf.doctor.report import Report, Section
from dspark_gguf.errors import UsageError

if TYPE_CHECKING:
    from dspark_gguf.engine.build import Device
    from dspark_gguf.engine.pair import Pair

Say = Callable[[str], None]


def examine(
    settings: Settings,
    say: Say = lambda line: None,
    verbose: bool = False,
    on_error: Callable[[Exception], object] = lambda error: None,
) -> Report:
    """Look at the machine and, if there is one, at the pair; about ten seconds for a small one.

    Args:
        settings: which models, and how they would be loaded.
        say: called with a line when something takes long.
        verbose: show llama.cpp's log.
        on_error: called with every exception that a check ended with.

    Raises:
        UsageError: a draft without a target.

    """
    if settings.model is None and settings.draft is not None:
        raise UsageError("a target for this draft", "none", "name it with -m TARGET.gguf")
    report = Report(on_error)
    report.check("versions", machine.versions)
    if report.check("build", lambda: machine.build(settings, verbose)) is None:
        return report  # llama.cpp cannot be loaded: nothing else can be asked
    devices: Sequence[Device] = report.check("devices", machine.devices) or ()
    safe = report.check("first pass", lambda: _first_pass(settings))
    if safe is None:
        return report  # nothing can be loaded without the same end
    settings = safe
    if settings.model is None:
        files = report.check("models", lambda: _demo(say))
    else:
        files = report.check("models", lambda: _named(settings.model, settings.draft, say))
        if files is None and settings.draft is not None:
            # A draft that means nothing does not hide the target.
            files = report.check(
                "models without the draft", lambda: _named(settings.model, None, say)
            )
    if files is not None:
        _examine_models(report, files, devices, settings)
    return report


def _first_pass(settings: Settings) -> Section:
    from dspark_gguf.doctor.passes import first_pass

    return first_pass(settings)


def _demo(say: Say) -> Section:
    from dspark_gguf.catalog import resolve
    from dspark_gguf.catalog.demo import source_model

    try:
        source_model()
    except UsageError as error:
        return Section(f"none: name a pair with -m TARGET.gguf -d DRAFT.gguf, or {error.do}")
    files = resolve(None, None, say)
    return Section("the demo pair; -m TARGET.gguf -d DRAFT.gguf for your own", value=files)


def _named(model: str | None, draft: str | None, say: Say) -> Section:
    from dspark_gguf.catalog import resolve

    return Section("", value=resolve(model, draft, say))


def _examine_models(
    report: Report,
    files: tuple[Path, Path | None],
    devices: Sequence[Device],
    settings: Settings,
) -> None:
    from dspark_gguf.doctor import models
    from dspark_gguf.engine.pair import DEFAULT_CONTEXT, Pair

    target, draft = files
    needs = {"target": report.check("target", lambda: models.file(target, settings.target_options))}
    if draft is not None:
        most = needs["target"].n_ctx if needs["target"] else DEFAULT_CONTEXT
        needs["draft"] = report.check(
            "draft", lambda: models.file(draft, settings.draft_options, most)
        )
    known = {role: need for role, need in needs.items() if need is not None}
    if "target" not in known:
        return
    if report.check("memory", lambda: models.fit(known, devices, settings)) is False:
        return  # loading it all the same would make the machine swap
    guesser = draft if "draft" in known else None

    def load() -> Section:
        options = (settings.target_options, settings.draft_options, settings.chat.chat_template)
        pair = Pair(target, guesser, *options)
        return Section("", value=pair)

    pair: Pair | None = report.check("load", load)
    if pair is not None:
        with pair:
            _examine_pair(report, pair, guesser is not None, settings)


def _examine_pair(report: Report, pair: Pair, has_draft: bool, settings: Settings) -> None:
    from dspark_gguf.doctor import measured, models

    if not report.check("pair", lambda: models.compatibility(pair, has_draft)):
        # The target alone is looked at all the same.
        off = settings.speculation.model_copy(update={"drafter": "lookup"})
        settings = settings.model_copy(update={"speculation": off})
    costs = report.check("costs", lambda: measured.costs(pair, settings.speculation))
    if costs is not None:
        report.check("speed", lambda: measured.speed(pair, settings, costs))
    report.check("logits", lambda: measured.logits(pair, costs))
    report.check("threads", lambda: measured.threads(pair))
    report.check("attention", lambda: measured.attention(pair, costs))
