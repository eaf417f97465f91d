"""Drafters by name: a drafter's name is its settings value, its calibration and its bench method.

To add one, in this package or another::

    @drafter("mine")
    class MyDrafter(NoDrafter):
        name = "mine"

        @classmethod
        def of(cls, kit: Kit) -> "MyDrafter": ...

A package that is installed beside this one names its class in the entry points of the group
``dspark_gguf.drafters``; then `--drafter mine` finds it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, TypeVar

from dspark_gguf.config import Sampling, Speculation
from dspark_gguf.errors import UsageError

_GROUP = "dspark_gguf.drafters"
_DRAFTERS: dict[str, Any] = {}

Class = TypeVar("Class", bound=type)


@dataclass(frozen=True, slots=True)
class Kit:
    """What a drafter may be made of.

    Attributes:
        target: the target's cache.
        draft: gives the draft model's cache, or None; loads it at the first call.
        vocabulary: the target's.
        sampling: how a draft token is drawn.
        speculation: the settings.

    """

    target: Any
    draft: Callable[[], Any]
    vocabulary: Any
    sampling: Sampling
    speculation: Speculation


def drafter(name: str) -> Callable[[Class], Class]:
    """Register a class of drafters, made by its ``of(kit)``, under `name`."""

    def register(kind: Class) -> Class:
        _DRAFTERS[name] = kind
        return kind

    return register


def known_drafters() -> list[str]:
    """All names, those of other packages too."""
    return sorted({*_DRAFTERS, *(point.name for point in entry_points(group=_GROUP))})


def drafter_class(name: str) -> Any:
    """The class of that name.

    Raises:
        UsageError: there is none.

    """
    if name not in _DRAFTERS:
        for point in entry_points(group=_GROUP, name=name):
            _DRAFTERS[name] = point.load()
    if name not in _DRAFTERS:
        known = ", ".join(["auto", *known_drafters()])
        raise UsageError(f"a drafter ({known})", repr(name), "choose one of these")
    return _DRAFTERS[name]
