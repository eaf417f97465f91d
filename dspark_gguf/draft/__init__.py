"""Drafters, one per file; what they are and how they are found by name is in ``base.py``."""

from dspark_gguf.draft.answer_grammar import AnswerGrammar as AnswerGrammar
from dspark_gguf.draft.answer_grammar import Choices as Choices
from dspark_gguf.draft.base import Drafter as Drafter
from dspark_gguf.draft.base import Kit as Kit
from dspark_gguf.draft.base import NoDrafter as NoDrafter
from dspark_gguf.draft.base import drafter as drafter
from dspark_gguf.draft.base import drafter_class as drafter_class
from dspark_gguf.draft.base import known_drafters as known_drafters
from dspark_gguf.draft.block import BlockDrafter as BlockDrafter
from dspark_gguf.draft.cascade import Cascade as Cascade
from dspark_gguf.draft.foreign import ForeignDrafter as ForeignDrafter
from dspark_gguf.draft.grammar import within as within
from dspark_gguf.draft.lookup import LookupDrafter as LookupDrafter
from dspark_gguf.draft.mapped import MappedDrafter as MappedDrafter
from dspark_gguf.draft.model import ModelDrafter as ModelDrafter
from dspark_gguf.draft.mtp import EagleDrafter as EagleDrafter
from dspark_gguf.draft.mtp import HeadDrafter as HeadDrafter
from dspark_gguf.draft.store import Store as Store
