"""What the target is asked: prompts of a file, or such as it writes itself."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import Protocol

from dspark_gguf.engine.template import ChatTemplate
from dspark_gguf.errors import UsageError
from dspark_gguf.measure.prompts import Prompt

#: Greedy answers are what drafts are best at, and one in this many of the prompts is held out.
_TEMPERATURES, _CHANCES = (0.0, 0.6, 1.0), (0.45, 0.35, 0.20)
_HELD_EVERY = 16
#: Most held-out prompts: enough to see a gain of a few percent.
MAX_HELD = 40
#: What can be asked about a text that the target wrote.
_TASKS = (
    "Summarise in one sentence: {}",
    "Translate to French: {}",
    "Rewrite politely: {}",
    "List the key facts of this text: {}",
    "Correct the spelling and return the whole text: {}",
    "What is the main idea of this text? {}",
)
_MARK = "\x02the user's turn\x02"


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, as token ids; `begun` asks for a user's turn rather than for an answer.

    From token `start` on, the target wrote it: there is something to learn there too.
    """

    tokens: list[int]
    temperature: float
    start: int
    held: bool = False
    begun: bool = False


class Source(Protocol):
    """An endless supply of prompts."""

    def next(self) -> Question:
        """The next prompt."""

    def heard(self, text: str, asked: Question) -> Question | None:
        """Take note of what the target wrote; perhaps it is the prompt to answer now."""


class GivenPrompts:
    """Those of a file, in turn, each time at another temperature; some of them are held out.

    Held-out ones are asked first, and only once. An earlier run has answers to those `held`, and so
    many others are `done`. Those of more than `longest` tokens are left out; a `UsageError` if that
    are all.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        template: ChatTemplate,
        seed: int,
        longest: int,
        held: Sequence[list[int]] = (),
        done: int = 0,
    ) -> None:
        rng = random.Random(seed)
        every = dict.fromkeys(tuple(template.encode(each.messages)) for each in prompts)
        order = [tokens for tokens in every if len(tokens) <= longest]
        #: Prompts that leave no room for an answer.
        self.left_out = len(every) - len(order)
        if not order:
            problem = f"all prompts have more than {longest} tokens, which leaves answers no room"
            raise UsageError(problem, "Give shorter --prompts.")
        rng.shuffle(order)
        most, before = min(MAX_HELD, -(-len(order) // _HELD_EVERY)), set(map(tuple, held))
        new = [list(tokens) for tokens in order[:most] if tokens not in before]
        rest = [list(tokens) for tokens in order[most:] if tokens not in before]
        rest = rest or [list(tokens) for tokens in order]
        self._supply = chain(self._held(new), islice(self._turns(rest), done, None))

    def next(self) -> Question:
        """The next prompt."""
        return next(self._supply)

    def heard(self, text: str, asked: Question) -> Question | None:
        """Nothing: the prompts are given."""

    def _held(self, prompts: list[list[int]]) -> Iterator[Question]:
        for tokens in prompts:
            yield Question(tokens, 0.0, len(tokens), held=True)

    def _turns(self, prompts: list[list[int]]) -> Iterator[Question]:
        for turn in count():
            for k, tokens in enumerate(prompts):
                yield Question(tokens, _TEMPERATURES[(turn + k) % 3], len(tokens))


class OwnPrompts:
    """The target goes on where a user's turn begins; some prompts are tasks on what it wrote.

    A `UsageError`: nothing comes before that turn.
    """

    def __init__(self, template: ChatTemplate, seed: int, done: int = 0) -> None:
        self._template, self._rng = template, random.Random(f"{seed}, {done}")
        head = template.render([{"role": "user", "content": _MARK}]).partition(_MARK)[0]
        #: What comes before a user's turn.
        self._opening = template.tokenize(head)
        if not self._opening:
            problem = "the chat template has nothing before a user's text to go on from"
            raise UsageError(problem, "Give --prompts.")
        self._texts: list[str] = []
        self._count, self._held = done, min(MAX_HELD, done // _HELD_EVERY)

    def next(self) -> Question:
        """A user's turn to be written, or a task."""
        if len(self._texts) > 20 and self._rng.random() < 0.3:
            text = self._rng.choice(_TASKS).format(self._rng.choice(self._texts))
            return self._ask(text)
        return Question(self._opening, 1.0, len(self._opening), begun=True)

    def heard(self, text: str, asked: Question) -> Question | None:
        """A user's turn becomes a prompt; parts of answers become texts for tasks."""
        text = text.strip()
        if asked.begun:
            return self._ask(text, own=True) if text else None
        if len(text.split()) >= 8 and not asked.held:
            self._texts = [*self._texts[-399:], text[:400].rpartition(".")[0] + "."]
        return None

    def _ask(self, text: str, own: bool = False) -> Question:
        self._count += 1
        tokens = self._template.encode([{"role": "user", "content": text}])
        if self._count % _HELD_EVERY == 4 and self._held < MAX_HELD:
            self._held += 1
            return Question(tokens, 0.0, len(tokens), held=True)
        temperature = self._rng.choices(_TEMPERATURES, _CHANCES)[0]
        return Question(tokens, temperature, len(self._opening) if own else len(tokens))
