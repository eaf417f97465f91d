"""Drafters, one per file, one protocol (``base.py``), found by name (``registry.py``)."""

from dspark_gguf.draft.base import Drafter, NoDrafter
from dspark_gguf.draft.block import BlockDrafter
from dspark_gguf.draft.cascade import Cascade
from dspark_gguf.draft.grammar import AnswerGrammar, Choices, within
from dspark_gguf.draft.lookup import LookupDrafter
from dspark_gguf.draft.model import ModelDrafter
from dspark_gguf.draft.registry import Kit, drafter, drafter_class, known_drafters
from dspark_gguf.draft.store import Store

__all__ = [
    "AnswerGrammar",
    "BlockDrafter",
    "Cascade",
    "Choices",
    "Drafter",
    "Kit",
    "LookupDrafter",
    "ModelDrafter",
    "NoDrafter",
    "Store",
    "drafter",
    "drafter_class",
    "known_drafters",
    "within",
]
