"""The whole bench, for the command."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil

from dspark_gguf import __version__
from dspark_gguf.chat.progress import tracked
from dspark_gguf.chat.terminal import ended_by_signals, interruptible
from dspark_gguf.config import Settings
from dspark_gguf.engine import library
from dspark_gguf.engine.pair import Pair
from dspark_gguf.errors import Cancelled, ResourceError
from dspark_gguf.measure.bench import llama_peer, text
from dspark_gguf.measure.bench.ours import ours
from dspark_gguf.measure.bench.peers import peers
from dspark_gguf.measure.bench.plan import Plan
from dspark_gguf.measure.bench.report import measure_rest, require_folder, write_report
from dspark_gguf.measure.bench.results import Results
from dspark_gguf.measure.bench.turns import Program, Task, play, warm_up
from dspark_gguf.measure.bench.ways import Cast, default_ways, make_ways
from dspark_gguf.visible import as_json

INTERRUPTED = 130
#: The JSON object's version: a new number when a key changes its meaning.
FORMAT = 1
#: Before the first turn: no prompt of the bench, so that nothing of them is learned.
_WARM_UP = "Count from one to twenty in words."


@dataclass
class Bench:
    """A loaded pair, measured turn by turn.

    Attributes:
        pair: models.
        settings: how tokens are drawn, and the system prompt.
        plan: what to measure.

    """

    pair: Pair
    settings: Settings
    plan: Plan
    _memory: int | None = None

    def run(self, echo: Callable[[str], object]) -> int:
        """Measure and print; returns the exit code.

        Args:
            echo: prints a line on stdout.

        """
        plan, code = self.plan, 0
        if plan.report:
            require_folder(plan.report)
        say = (lambda line: None) if plan.as_json else echo
        tasks = self.tasks()
        ways = make_ways(plan.ways or default_ways(self.cast, plan.quick), self.cast, plan.yours)
        results, abouts = Results([way.name for way in ways]), {way.name: way.about for way in ways}
        programs = ours(self.pair, ways, self.settings.sampling, self.settings.limits)
        with ended_by_signals(), interruptible(self.pair.interrupt):
            try:
                self._measure(programs, tasks, results, abouts, say)
            except Cancelled:
                code = INTERRUPTED
            facts = self.facts(results, abouts, len(tasks), interrupted=bool(code))
            if plan.report and not code:
                try:
                    rest = measure_rest(self.pair, plan.prompts, plan.tokens)
                except Cancelled:
                    facts["interrupted"], code = True, INTERRUPTED
                else:
                    path = write_report(plan.report, results, facts, rest)
                    print(f"report: {path}", file=sys.stderr)  # noqa: T201
        self._print(results, facts, say)
        echo(as_json(facts, sys.stdout))
        return code

    def _measure(
        self,
        programs: Sequence[Program],
        tasks: Sequence[Task],
        results: Results,
        abouts: dict[str, str],
        say: Callable[[str], object],
    ) -> None:
        """Fill `results`, with the names of the peers; `abouts` too."""
        tokens, most = self._encode([{"role": "user", "content": _WARM_UP}]), self.plan.tokens
        first = [Task("", tokens, temperature, most) for temperature in self.plan.temperatures]
        warm_up(programs, first)
        self._memory = peak_bytes()
        with self._peers(tasks) as others:
            warm_up(others, first)
            results.ways += [other.name for other in others]
            results.peers = frozenset(other.name for other in others)
            abouts.update({other.name: other.about for other in others})
            say(text.header(abouts, len(tasks), most))
            for turn in tracked(play([*programs, *others], tasks), len(tasks)):
                results.add(turn)

    @property
    def cast(self) -> Cast:
        """Who drafts."""
        draft = self.pair.draft_cache()
        return Cast("" if draft is None else draft.kind)

    def tasks(self) -> list[Task]:
        """All prompts, at each temperature, in the order of the turns.

        Raises:
            ResourceError: a prompt that leaves no room for its answer.

        """
        encoded = [(prompt.domain, self._encode(prompt.messages)) for prompt in self.plan.prompts]
        longest = max(len(tokens) for _, tokens in encoded) + self.plan.tokens
        n_ctx = self.pair.target_cache.n_ctx
        if longest > n_ctx:
            raise ResourceError(
                f"the longest prompt and its answer take {longest} tokens, the context has {n_ctx}",
                "Use a larger --ctx-size, or fewer --tokens.",
            )
        return [
            Task(domain, tokens, temperature, self.plan.tokens, turn)
            for turn, (domain, tokens) in enumerate(encoded * self.plan.repeats)
            for temperature in self.plan.temperatures
        ]

    def _encode(self, messages: list[dict[str, str]]) -> tuple[int, ...]:
        chat = self.settings.chat
        system = [{"role": "system", "content": chat.system}] if chat.system else []
        return tuple(self.pair.template.encode([*system, *messages], chat.think))

    @contextmanager
    def _peers(self, tasks: Sequence[Task]) -> Iterator[list[Any]]:
        if not self.plan.peer:
            yield []
            return
        longest = max(len(task.tokens) for task in tasks) + self.plan.tokens
        # Room for draft tokens, too, in the steps of 256 that llama.cpp pads to.
        room = -(-(longest + 64) // 256) * 256
        with peers(self.pair, self.settings.sampling, room) as found:
            yield found

    def facts(
        self, results: Results, abouts: dict[str, str], wanted: int, interrupted: bool
    ) -> dict[str, Any]:
        """The JSON object."""
        draft, plan = self.pair.draft, self.plan
        return {
            "bench": FORMAT,
            "version": __version__,
            "llama_cpp": llama_peer.version(),
            "machine": library.machine(),
            "target": _file(self.pair.target),
            "draft": None if draft is None else {**_file(draft), "kind": self.cast.draft},
            "settings": {
                "tokens": plan.tokens,
                "repeats": plan.repeats,
                "temperatures": list(plan.temperatures),
                "prompts": len(plan.prompts),
                "threads": self.pair.target.options.threads or library.physical_cores(),
                "sampling": self.settings.sampling.model_dump(mode="json"),
            },
            "ways": abouts,
            "turns": {"measured": results.turns, "wanted": wanted},
            "interrupted": interrupted,
            "peak_memory_bytes": {"ours": self._memory, "all": peak_bytes()},
            **results.as_dict(),
        }

    def _print(self, results: Results, facts: dict[str, Any], say: Callable[[str], object]) -> None:
        if facts["interrupted"]:
            say(f"\ninterrupted: {results.turns} of {facts['turns']['wanted']} turns measured")
        if results.turns:
            width = shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 100
            say("\n" + text.as_text(results, width))
            memory = facts["peak_memory_bytes"]
            say("\n" + text.memory(memory["ours"], memory["all"]) + "\n")


def _file(model: Any) -> dict[str, Any]:
    return {"name": model.name, "bytes": model.size, "place": model.place}


def peak_bytes() -> int:
    """The most main memory that this process had so far.

    Weights that are mapped from a file count as far as they were read. Memory of a GPU does not.
    """
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere
