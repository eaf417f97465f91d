"""Free guesses before and after the looks of another drafter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dspark_gguf.dist import Dist
from dspark_gguf.draft.base import Drafter
from dspark_gguf.draft.lookup import LookupDrafter
from dspark_gguf.records import NO_DRAFT, Draft, Round
from dspark_gguf.schedule import Plan


class Cascade:
    """Copies what was said, and lets another drafter look where the plan wants it.

    In one draft: copied tokens, then looks, then copied tokens again; any of them may be missing.

    Args:
        lookup: guesses for nothing.
        other: the drafter that looks.

    """

    def __init__(self, lookup: LookupDrafter, other: Drafter) -> None:
        self.lookup, self.other = lookup, other

    def restart(self, tokens: Sequence[int], rng: np.random.Generator) -> None:
        """Both begin anew."""
        self.lookup.restart(tokens, rng)
        self.other.restart(tokens, rng)

    def propose(self, tokens: Sequence[int], plan: Plan) -> Draft:
        """Copies, looks, copies: as many of each as `plan` wants."""
        most = plan.length
        before = self.lookup.guess(tokens, most)
        head = before.tokens[: plan.copies(before.scores)]
        draft = Draft(head, tuple(map(Dist.point, head)), guesses=(before,))
        if not plan.length or self.lookup.ends(head):
            return draft
        looked = self.other.propose([*tokens, *head] if head else tokens, plan)
        if looked is NO_DRAFT:
            return draft
        draft = replace(
            looked,
            tokens=head + looked.tokens,
            laws=draft.laws + looked.laws,
            first_look=len(head),
            last_look=len(head) + len(looked),
            guesses=draft.guesses,
        )
        if self.lookup.ends(draft.tokens):
            return draft
        after = self.lookup.guess(tokens, most, draft.tokens)
        tail = after.tokens[: plan.copies(after.scores)]
        return replace(
            draft,
            tokens=draft.tokens + tail,
            laws=draft.laws + tuple(map(Dist.point, tail)),
            guesses=(*draft.guesses, after),
        )

    def behind(self, tokens: Sequence[int]) -> int:
        """What the other drafter would have to read."""
        return self.other.behind(tokens)

    def observe(self, round: Round) -> None:
        """Both learn."""
        self.lookup.observe(round)
        self.other.observe(round)

    def trim(self, length: int) -> None:
        """Both forget."""
        self.lookup.trim(length)
        self.other.trim(length)
