"""Free guesses before and after the draft steps of another drafter."""

from __future__ import annotations

from collections.abc import Sequence

from dspark_gguf.draft.answer_grammar import AnswerGrammar
from dspark_gguf.draft.base import Drafter
from dspark_gguf.draft.lookup import LookupDrafter
from dspark_gguf.engine.protocol import Passes
from dspark_gguf.errors import CacheFullError
from dspark_gguf.noise import Draws
from dspark_gguf.records import Draft, Round, Segment
from dspark_gguf.schedule import Plan


class Cascade(Drafter):
    """Combines prompt lookup with another drafter, as the plan decides.

    A draft is copied tokens, then draft steps, then copied tokens again; any part may be missing.
    """

    def __init__(self, lookup: LookupDrafter, other: Drafter) -> None:
        self.lookup, self.other = lookup, other
        self.name, self.about = other.name, f"{lookup.about} and {other.about}"
        self._nothing = Draft(Segment(lookup.name))  # nothing to copy, and no step: most rounds

    def restart(
        self, tokens: Sequence[int], draws: Draws, grammar: AnswerGrammar | None = None
    ) -> None:
        """Both begin anew."""
        self.lookup.restart(tokens, draws, grammar)
        self.other.restart(tokens, draws, grammar)

    def steps(self, tokens: Sequence[int], plan: Plan) -> Passes[Draft]:
        """Copies, steps, copies: as many of each as `plan` wants."""
        most = plan.length
        head = self._copied(tokens, plan, most)
        if not plan.length or self.lookup.ends(head.tokens):
            return Draft(head) if head.scores else self._nothing
        start = [*tokens, *head.tokens] if len(head) else tokens
        try:
            stepped = yield from self.other.steps(start, plan)
        except CacheFullError:  # of several conversations: copies need no cells
            return Draft(head)
        draft = Draft(head, *stepped.segments)
        if not stepped.segments or self.lookup.ends(draft.tokens):
            return draft
        tail = self._copied(tokens, plan, most - len(draft), draft.tokens)
        if tail.scores and not stepped.tokens:
            head = head.cut(len(head))  # its other guesses are the tail: each is counted once
        return Draft(head, *stepped.segments, tail)

    def _copied(
        self, tokens: Sequence[int], plan: Plan, most: int, drafted: Sequence[int] = ()
    ) -> Segment:
        guesses, scores = self.lookup.guess(tokens, most, drafted)
        count = plan.take(scores)
        if not guesses:
            return self._nothing.segments[0]
        return Segment.of_guesses(self.lookup.name, guesses, scores, count)

    def behind(self, tokens: Sequence[int]) -> int:
        """What the other drafter would have to read."""
        return self.other.behind(tokens)

    def observe(self, round: Round) -> None:
        """Only the other one learns."""
        self.other.observe(round)

    def trim(self, length: int) -> None:
        """Both forget."""
        self.lookup.trim(length)
        self.other.trim(length)
