"""The files: what they are, how much memory they need, whether that fits, and alternatives."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from dspark_gguf.catalog.inspect import inspect
from dspark_gguf.config import DraftOptions, ModelOptions, Settings
from dspark_gguf.doctor.report import Finding, Section
from dspark_gguf.engine.fitting import draft_need
from dspark_gguf.engine.gguf import Header, read_header
from dspark_gguf.engine.heads import heads_size, is_own_draft
from dspark_gguf.engine.library import Device
from dspark_gguf.engine.memory import DEFAULT_CONTEXT, Need, need_of, room
from dspark_gguf.engine.pair import Pair
from dspark_gguf.measure.trace import has_chains
from dspark_gguf.paths import GIB, MIB

#: Where a part of a model can be.
GPU, MAIN = "on the GPU", "in main memory"
#: On a CPU, draft and target take time in about the ratio of their sizes.
_LARGE_DRAFT = 1 / 8


def draft(path: Path, options: DraftOptions, target: Path, max_tokens: int) -> Section:
    """The file of a draft, which may be the target's own; as `file`."""
    header, its_target = read_header(path), read_header(target)
    n_ctx = _context(header, options, max_tokens)
    need = draft_need(header, its_target, options, n_ctx)
    if is_own_draft(its_target, path):
        size = heads_size(header) / MIB
        text = (
            f"the target's own prediction heads, {size:.0f} MiB of its weights, and "
            f"{need.cache / MIB:.0f} MiB for {n_ctx:,} tokens"
        )
        return Section(text, {"need": asdict(need)}, value=need)
    return _described(path, need)


def file(path: Path, options: ModelOptions, max_tokens: int = DEFAULT_CONTEXT) -> Section:
    """One file, from its header alone; `max_tokens` of context, unless the options say more."""
    header = read_header(path)
    return _described(path, need_of(header, options, _context(header, options, max_tokens)))


def _context(header: Header, options: ModelOptions, max_tokens: int) -> int:
    return options.n_ctx or min(max_tokens, int(header.get("context_length", max_tokens)))


def _described(path: Path, need: Need) -> Section:
    facts, n_ctx = inspect(path), need.n_ctx
    kind = f" {facts['draft']['kind']} draft" if "draft" in facts else ""
    text = (
        f"{path.name}: {facts['architecture']}{kind}, {facts['parameters'] / 1e9:.2f} billion "
        f"parameters, {facts['quantization']['file_type'] or 'mixed'}, {need.weights / MIB:.0f} "
        f"MiB, and {need.cache / MIB:.0f} MiB for {n_ctx:,} tokens"
    )
    if need.on_gpu:
        text += f", {need.on_gpu} of {need.layers} layers on the GPU"
    kept = ("architecture", "name", "parameters", "quantization", "size", "shape", "kind")
    shown = {"file": path.name, **{key: facts[key] for key in kept}, "need": asdict(need)}
    return Section(text, shown, value=need)


def fit(needs: Mapping[str, Need], devices: Sequence[Device], settings: Settings) -> Section:
    """Whether all parts fit in their memory; the section's value says whether the target does."""
    lines, findings, alone = [], [], True
    for place in (GPU, MAIN):
        wanted = sum(need.at(on_gpu=place == GPU) for need in needs.values())
        free = room(list(devices), settings.target_options, on_gpu=place == GPU)
        if not wanted or free is None:
            continue
        lines.append(f"{wanted / GIB:.2f} of {free / GIB:.1f} GiB free {place}")
        if wanted > free:
            findings.append(_too_large(place, wanted, free, needs["target"]))
            alone = alone and needs["target"].at(on_gpu=place == GPU) <= free
    verdict = "does not fit" if findings else "fits"
    text = f"{verdict}: {', '.join(lines) or 'free memory unknown'}"
    return Section(text, {"fits": not findings}, tuple(findings), value=alone)


def _too_large(place: str, wanted: float, free: float, target: Need) -> Finding:
    own = target.at(on_gpu=place == GPU)
    if own <= free:
        hint = "The draft gives way; choose a smaller one, or give it less context (-cd)."
    elif place == GPU:
        layers = target.layers_that_fit(max(int(free - (wanted - own)), 0))
        hint = f"Load only part of the target there: -ngl {layers}"
    elif target.cache > target.total / 4:
        hint = "Use less context (-c) or a smaller cache (-ctk q8_0 -ctv q8_0 takes about half)."
    else:
        hint = "Choose a smaller quantization or a smaller model."
    return Finding(
        f"the models and their caches take {wanted / GIB:.1f} GiB {place}, "
        f"only {free / GIB:.1f} GiB are free",
        hint,
    )


def compatibility(pair: Pair, has_draft: bool) -> Section:
    """Load the draft, if there is one, and compare the vocabularies."""
    draft = pair.draft_cache() if has_draft else None
    count = f"{pair.vocabulary.n_vocab:,} tokens"
    places, refused = {"target": pair.target.place}, [*pair.target.notes]
    if draft is None:
        text = f"no draft model: drafts come from prompt lookup ({count})"
    else:
        same = "the target's vocabulary", "another vocabulary than the target's"
        text = f"the draft has {same[not has_chains(draft)]}, {count}"
        places["draft"] = draft.model.place
        refused += draft.model.notes
    text += "; " + ", ".join(f"{role} on {place}" for role, place in places.items())
    shown_elsewhere = [*refused, *pair.left_out]
    text += "".join(f"; {note}" for note in pair.notes if note not in shown_elsewhere)
    rollback = pair.target_cache.rollback
    if rollback != "removal":
        text += f"; rejected tokens are taken back by {rollback}"
    facts = {"places": places, "rollback": rollback, "notes": pair.notes}
    ignored = [Finding(note, "Change the option, or the build of llama.cpp.") for note in refused]
    return Section(text, facts, (*ignored, *advice(pair)), value=True)


def advice(pair: Pair) -> list[Finding]:
    """Advice that follows from the models and their options, without measuring."""
    found, draft, target = [], pair.draft, pair.target
    if draft is not None and target.gpu_layers and not draft.gpu_layers:
        found.append((
            "the target is on the GPU, but the draft is on the CPU",
            "Leave out -ngld 0 (llama.cpp#10664: 104 tokens a second instead of 45).",
        ))  # fmt: skip
    if draft is not None and not target.gpu_layers and draft.size > _LARGE_DRAFT * target.size:
        found.append((
            f"the draft has {draft.size / target.size:.0%} of the target's bytes; on a CPU an "
            "eighth is the most that pays",
            "Choose a smaller draft, or none: prompt lookup costs nothing.",
        ))  # fmt: skip
    on_metal = any(name in target.place for name in ("Metal", "MTL"))
    if on_metal and re.search(r"_XL\b", target.name, re.IGNORECASE):
        found.append((
            "the target is a mixed XL quantization, which is slow on Metal",
            "Choose one of a single type, such as Q4_0, IQ4_NL or Q8_0: XL was seen at half the "
            "speed (llama.cpp#27525).",
        ))  # fmt: skip
    return [Finding(problem, hint, wrong=False) for problem, hint in found]
