"""Slash commands about the model and the settings."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from dspark_gguf.chat.registry import Chat, command
from dspark_gguf.chat.think import FIXED
from dspark_gguf.config import Limits, ModelOptions, Sampling, Settings, Speculation, option_names
from dspark_gguf.errors import UsageError, meant
from dspark_gguf.settings_files import plain_yaml
from dspark_gguf.speedup import speedup_here

#: Settings that ``/set`` takes, by section; `/system` and `/think` set the others of a chat.
SETTABLE = {
    "sampling": list(Sampling.model_fields),
    "limits": list(Limits.model_fields),
    "speculation": list(Speculation.model_fields),
    "chat": ["context_shift", "markdown"],
}


def _names(field: str) -> list[str]:
    """All names of a setting: its field, and its options on the command line."""
    return [field, *(each.lstrip("-").replace("-", "_") for each in option_names(field))]


#: Any name of a setting -> its section and field.
_PLACES = {
    name: (section, field)
    for section, fields in SETTABLE.items()
    for field in fields
    for name in (*_names(field), f"{section}.{field}")
}
#: Any name of a setting that is fixed once the models are loaded -> its option.
_LOADED = {
    name: option_names(field)[-1]
    for field in ("model", "draft", *ModelOptions.model_fields)
    for name in _names(field)
}


@command("set", usage="[KEY [VALUE|default]]", summary="show all settings or one, or change it")
def _set(chat: Chat, argument: str) -> None:
    settings = chat.session.settings
    if not argument:
        wanted = {section: set(fields) for section, fields in SETTABLE.items()}
        shown = settings.model_dump(mode="json", include=wanted)
        chat.screen.note(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True).rstrip())
        return
    key, value = re.split(r"\s*=\s*|\s+|$", argument, maxsplit=1)
    section, field = _place(key)
    if value:
        _change(chat, section, field, value)
    chat.screen.note(_shown(chat.session.settings, section, field))


def _change(chat: Chat, section: str, field: str, value: str) -> None:
    parsed: Any = value
    with suppress(ValueError):
        parsed = plain_yaml(value)
    if value == "default":
        parsed = getattr(Settings(), section).model_dump()[field]
    hint = ""
    for given in (parsed, value):  # text may parse as something else, such as a JSON schema
        try:
            chat.session.update({section: {field: given}})
            return
        except UsageError as error:
            if "in the settings is" not in error.problem:
                raise
            hint = error.hint
    raise UsageError(f"{field} cannot be {value}", hint)


def _shown(settings: Settings, section: str, field: str) -> str:
    """One setting in YAML."""
    part = getattr(settings, section)
    value = [part.model_dump(mode="json")[field]]
    text: str = yaml.safe_dump(value, allow_unicode=True, default_flow_style=True, width=10**6)
    is_default = bool(getattr(part, field) == getattr(getattr(Settings(), section), field))
    shown = text.strip()[1:-1]
    if shown in ("'on'", "'off'"):  # which need no quotes here
        shown = shown.strip("'")
    return f"{field}: {shown}" + "  (default)" * is_default


def _place(key: str) -> tuple[str, str]:
    """Section and field of a setting, as it is called in YAML or on the command line."""
    name = key.lstrip("-").replace("-", "_")
    if name in _PLACES:
        return _PLACES[name]
    if name in ("system", "think"):
        raise UsageError(f"{name} has a command of its own", f"Type /{name}.")
    if name in _LOADED:
        hint = f"Leave with Ctrl-D and start again with {_LOADED[name]}."
        if _LOADED[name] in ("--model", "--model-draft"):
            hint = "Type /model NAME [DRAFT] to go on with another."
        raise UsageError(f"{key} is settled when the model is loaded", hint)
    hint = meant(name, _PLACES) + "/set lists all of them."
    raise UsageError(f"there is no setting {key}", hint)


@command("spec", usage="[on|off|auto]", summary="speculative decoding")
def _spec(chat: Chat, argument: str) -> None:
    if argument and argument not in ("on", "off", "auto"):
        raise UsageError("/spec takes on, off or auto", "Type /spec auto, for instance.")
    if argument:
        chat.session.update({"speculation": {"mode": argument}})
    chat.screen.note(f"speculation {drafting(chat)}")


def drafting(chat: Chat) -> str:
    """The mode of speculation, and whether drafting is faster here."""
    session = chat.session
    speculation, slower = session.settings.speculation, session.summary.slower
    if speculation.stopping_rule != "optimal":
        return speculation.mode
    text = f"{speculation.mode}; {speedup_here(session.pair, session.settings)}"
    return text if slower is None else f"{text}; now plain: drafts would be {slower:.0%} slower"


@command("think", usage="on|off", summary="thinking, for models that can switch it")
def _think(chat: Chat, argument: str) -> None:
    if argument not in ("on", "off"):
        raise UsageError("/think takes on or off", "Type /think on or /think off.")
    if not chat.session.pair.template.switches_thinking:
        raise UsageError(FIXED, "Use another model.")
    chat.session.update({"chat": {"think": argument == "on"}})
    chat.screen.note(f"thinking {argument}")


@command("model", usage="[NAME [DRAFT]]", summary="show the models, or go on with others")
def _model(chat: Chat, argument: str) -> None:
    whole = Path(argument).expanduser()
    words = [str(whole)] if argument and whole.exists() else argument.split()
    if len(words) > 2:
        raise UsageError("/model takes a model and perhaps a draft", "Type /model NAME DRAFT.")
    if words:
        chat.switch(words[0], words[1] if len(words) > 1 else None)
    chat.screen.note(chat.session.pair.summary(chat.session.settings.speculation))


@command("show", summary="models, session, context, and the settings that are not the defaults")
def _show(chat: Chat, argument: str) -> None:
    session = chat.session
    used, size = session.summary.context
    rows: list[tuple[str, str]] = [
        (role, f"{cache.model.name} on {cache.model.place}")
        for role, cache in session.pair.caches.items()
    ]
    rows += [
        ("speculation", drafting(chat)),
        ("context", f"{used:,} of {size:,} tokens used"),
        ("messages", str(len(session.messages))),
        ("session", chat.saved.name if chat.saved else "not kept"),
        ("system prompt", session.system or "none"),
    ]
    rows += [("set", _shown(session.settings, *place)) for place in _changed(session.settings)]
    chat.screen.table(rows)


def _changed(settings: Settings) -> list[tuple[str, str]]:
    """Section and field of what `/set` takes and is not the default."""
    default: dict[str, Any] = Settings().model_dump()
    now = settings.model_dump()
    return [
        (section, field)
        for section, fields in SETTABLE.items()
        for field in fields
        if now[section][field] != default[section][field]
    ]
