"""The whole bench, for the command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from shlex import join as quote
from typing import Any

import psutil

from dspark_gguf import __version__
from dspark_gguf.chat.progress import track
from dspark_gguf.chat.wrapping import columns
from dspark_gguf.config import Settings, Speculation
from dspark_gguf.decoder import Decoder
from dspark_gguf.engine import library
from dspark_gguf.engine.model import Model
from dspark_gguf.engine.pair import Pair
from dspark_gguf.errors import Cancelled, ResourceError
from dspark_gguf.measure.bench import conversations, text
from dspark_gguf.measure.bench.peers import binding_version, peers
from dspark_gguf.measure.bench.plan import DEFAULT, BenchPlan, Method, default_methods, make_methods
from dspark_gguf.measure.bench.report import Extras, measure_extras, require_folder, write_report
from dspark_gguf.measure.bench.results import Results
from dspark_gguf.measure.bench.turns import OwnProgram, Program, Task, play, warm_up
from dspark_gguf.paths import discreet
from dspark_gguf.signals import ended_by_signals, interruptible
from dspark_gguf.speedup import measured
from dspark_gguf.visible import as_json, visible

#: The JSON object's version: a new number when a key changes its meaning.
FORMAT = 3
#: The prompt to warm up with: not one of the bench, so that nothing about those is learned.
_WARM_UP = "Count from one to twenty in words."


class Bench:
    """A loaded and profiled pair, measured turn by turn."""

    def __init__(self, pair: Pair, settings: Settings, plan: BenchPlan) -> None:
        self.pair, self.settings, self.plan = pair, settings, plan
        draft = pair.draft_cache()
        self.draft_kind = kind = "" if draft is None else draft.kind
        names = plan.methods or default_methods(kind, plan.quick)
        methods = make_methods(names, kind, plan.yours)
        self.programs: list[Program] = [self._program(method) for method in methods]
        self.results = Results([method.name for method in methods])
        self._memory: int | None = None  # most bytes before any peer was loaded

    def run(self, echo: Callable[[str], object]) -> int:
        """Measure, and print line by line with `echo`; returns the exit code.

        The figures are printed whatever becomes of the report.
        """
        plan, code, extras = self.plan, 0, Extras((), None)
        if plan.report:
            require_folder(plan.report)
        say = str if plan.as_json else echo
        tasks = self.tasks()
        with ended_by_signals(), interruptible(self.pair.interrupt):
            try:
                self._measure(tasks, say)
                if plan.report:
                    extras = measure_extras(self.pair, plan.prompts, plan.tokens, _tell)
            except Cancelled:
                code = Cancelled.exit_code
        self._keep()
        facts = self.facts(len(tasks), interrupted=bool(code))
        try:
            if plan.report and self.results.turns:
                _tell(f"report: {write_report(plan.report, self.results, facts, extras)}")
        finally:
            if code:
                say(f"\ninterrupted: {self.results.turns} of {len(tasks)} turns measured")
            if self.results.turns:
                width = columns(sys.stdout)
                say("\n" + text.as_text(self.results, width))
                say("\n" + text.memory(**facts["peak_memory_bytes"], width=width))
            if plan.as_json:
                echo(as_json(facts, sys.stdout))
        return code

    def _keep(self) -> None:
        """Save what was measured for `doctor` and `suggest`, unless the machine was too busy."""
        found = [
            comparison
            for regime in self.results.regimes()
            if (row := regime.rows.get(DEFAULT)) and row.comparisons
            if not measured(row.comparisons, regime.spread).doubt
            for comparison in row.comparisons
        ]
        if found:
            known = self.pair.kept()
            known.compare(found)
            known.save()

    def _program(self, method: Method) -> OwnProgram:
        """A program that knows what passes cost, but nothing that other methods learn."""
        learned = self.pair.copy_costs()

        def decoder_at(temperature: float) -> Decoder:
            sampling = self.settings.sampling.model_copy(update={"temperature": temperature})
            return Decoder.for_pair(self.pair, sampling, method.speculation, learned)

        return OwnProgram(method.name, decoder_at, self.settings.limits, method.about)

    def _measure(self, tasks: Sequence[Task], say: Callable[[str], object]) -> None:
        """Load the peers, and measure turn by turn."""
        tokens, most = self._encode([{"role": "user", "content": _WARM_UP}]), self.plan.tokens
        first = [Task("", tokens, temperature, most) for temperature in self.plan.temperatures]
        warm_up(self.programs, first)
        self._memory = peak_bytes()
        # Room for draft tokens, too, in the steps of 256 that llama.cpp pads to.
        room = -(-(max(len(task.tokens) for task in tasks) + most + 64) // 256) * 256
        with ExitStack() as stack:
            others: list[Program] = []
            if self.plan.peer:
                others = stack.enter_context(peers(self.pair, self.settings.sampling, room))
            warm_up(others, first)
            names = [other.name for other in others]
            self.results.methods += names
            self.results.peers = frozenset(names)
            self.programs += others
            say(text.header(self._abouts(), len(tasks), most, columns(sys.stdout)))
            for turn in play(self.programs, tasks, partial(track, title="answers")):
                self.results.samples += turn

    def tasks(self) -> list[Task]:
        """All prompts, at each temperature, in the order of the turns.

        A ResourceError names a prompt that leaves no room for its answer.
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

    def _abouts(self) -> dict[str, str]:
        return {program.name: program.about for program in self.programs}

    def facts(self, wanted: int, interrupted: bool) -> dict[str, Any]:
        """The JSON object."""
        draft, plan = self.pair.draft, self.plan
        return {
            "bench": FORMAT,
            "version": __version__,
            "date": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}".strip(),
            "command": discreet(quote(["dspark-gguf", *sys.argv[1:]])),
            "llama_cpp": binding_version(),
            "machine": library.machine(),
            "target": _file(self.pair.target),
            "draft": None if draft is None else {**_file(draft), "kind": self.draft_kind},
            "settings": {
                "tokens": plan.tokens,
                "repeats": plan.repeats,
                "temperatures": list(plan.temperatures),
                "prompts": len(plan.prompts),
                "threads": library.threads_of(self.pair.target.options)[0],
                "sampling": self.settings.sampling.model_dump(mode="json"),
            },
            "methods": self._abouts(),
            "turns": {"measured": self.results.turns, "wanted": wanted},
            "interrupted": interrupted,
            "peak_memory_bytes": {"ours": self._memory, "all": peak_bytes()},
            **self.results.as_dict(),
        }


def bench_conversations(
    pair: Pair,
    settings: Settings,
    plan: BenchPlan,
    counts: Sequence[int],
    echo: Callable[[str], object],
) -> int:
    """Measure several conversations at once; returns the exit code."""
    pair.learned(Speculation(learn=False))
    bench = Bench(pair, settings, plan)
    prompts: dict[str, list[Sequence[int]]] = {"new text": [], "copying": []}
    for task in bench.tasks()[: len(plan.prompts) * len(plan.temperatures)]:
        if task.temperature == plan.temperatures[0]:
            kind = "copying" if task.domain in conversations.COPYING else "new text"
            prompts[kind].append(task.tokens)
    chosen = {name: some for name, some in prompts.items() if some}
    update = {"temperature": plan.temperatures[0], "ignore_eos": True}
    sampling, code = settings.sampling.model_copy(update=update), 0
    say = str if plan.as_json else echo
    say(conversations.HEADER + "\n")
    cells: list[conversations.Cell] = []
    with ended_by_signals(), interruptible(pair.interrupt):
        work = conversations.measure(pair, chosen, counts, sampling, plan.tokens, plan.repeats)
        try:
            cells += track(work, len(chosen) * len(counts))
        except Cancelled:
            code = Cancelled.exit_code
        finally:
            say(conversations.as_text(cells))
    if code:
        say(f"\ninterrupted: {len(cells)} of {len(chosen) * len(counts)} lines measured")
    kept = ("bench", "version", "date", "command", "machine", "target", "draft", "interrupted")
    facts = bench.facts(0, interrupted=bool(code))
    facts = {name: facts[name] for name in kept}
    if plan.as_json:
        echo(as_json({**facts, "conversations": [cell.as_dict() for cell in cells]}, sys.stdout))
    return code


def _file(model: Model) -> dict[str, Any]:
    return {"name": model.name, "bytes": model.size, "place": model.place}


def _tell(line: str) -> None:
    print(visible(line), file=sys.stderr)  # noqa: T201


def peak_bytes() -> int:
    """The peak main memory of this process.

    Of weights that are mapped from a file, the part that was read counts; a GPU's memory does not.
    """
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere
