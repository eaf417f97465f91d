"""Prompts for the target: from a file, or written by the target itself."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import Protocol

from dspark_gguf.engine.template import ChatTemplate
from dspark_gguf.errors import UsageError
from dspark_gguf.measure.prompts import Prompt

#: Temperatures and how often each is used: drafts are best at greedy answers.
_TEMPERATURES, _CHANCES = (0.0, 0.6, 1.0), (0.45, 0.35, 0.20)
#: One prompt in this many is held out.
_HELD_EVERY = 16
#: Most held-out prompts: enough to see a gain of a few percent.
MAX_HELD = 40
#: Tasks on a text that the target wrote.
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
    """A prompt, as token ids; if `begun`, the target writes a user's turn, not an answer.

    The target wrote the tokens from `start` on, so they are trained on too.
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
        """Use what the target wrote; returns it as a prompt if it was a user's turn."""


class GivenPrompts:
    """Prompts of a file, in turn, at another temperature each time; some of them are held out.

    Held-out prompts come first, and only once. An earlier run answered the `held` ones and `done`
    others. Prompts of more than `longest` tokens are left out; a `UsageError` if none remains.
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
            problem = f"all prompts have more than {longest} tokens, which leaves no room to answer"
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
    """The target writes the user's turns; some prompts are tasks on text that it wrote before.

    A `UsageError` if the template puts nothing before a user's turn.
    """

    def __init__(self, template: ChatTemplate, seed: int, done: int = 0) -> None:
        self._template, self._rng = template, random.Random(f"{seed}, {done}")
        head = template.render([{"role": "user", "content": _MARK}]).partition(_MARK)[0]
        #: What comes before a user's turn.
        self._opening = template.tokenize(head)
        if not self._opening:
            problem = "the chat template has nothing before a user's text to continue from"
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
