"""Metrics for Prometheus, under the names that llama-server and vLLM use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dspark_gguf.tally import Answer, Tally


@dataclass
class Metrics:
    """Sums since the start; only the engine's thread writes them."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    passes: int = 0
    busy_slots: int = 0  # answers in a pass, summed over passes
    max_tokens: int = 0  # of a prompt with its answer
    answers: dict[str, int] = field(default_factory=dict)  # by how they ended
    total: Tally = field(default_factory=Tally)

    def add_pass(self, running: int) -> None:
        """Count a pass with `running` answers."""
        self.passes += 1
        self.busy_slots += running

    def add_answer(self, answer: Answer, reason: str) -> None:
        """Count a finished answer."""
        self.answers[reason] = self.answers.get(reason, 0) + 1
        self.prompt_tokens += answer.prompt_tokens - answer.cached_tokens
        self.cached_tokens += answer.cached_tokens
        self.max_tokens = max(self.max_tokens, answer.prompt_tokens + len(answer.tokens))
        self.total.merge(answer.tally)

    def text(self, running: int, waiting: int) -> str:
        """The metrics in Prometheus' text format."""
        total, drafts = self.total, self.total.rounds - self.total.plain_rounds
        decode, prefill = total.decode_seconds, total.prefill_seconds
        counters = {
            "prompt_tokens_total": (self.prompt_tokens, "Prompt tokens processed."),
            "prompt_seconds_total": (prefill, "Seconds of prefill."),
            "tokens_predicted_total": (total.tokens, "Tokens generated."),
            "tokens_predicted_seconds_total": (decode, "Seconds of decoding."),
            "prompt_tokens_cached_total": (self.cached_tokens, "Prompt tokens found in the cache."),
            "n_decode_total": (self.passes, "Passes of the target."),
            "spec_decode_num_drafts": (drafts, "Rounds with a draft."),
            "spec_decode_num_draft_tokens": (total.drafted, "Draft tokens verified."),
            "spec_decode_num_accepted_tokens": (total.accepted, "Draft tokens accepted."),
        }
        gauges = {
            "prompt_tokens_seconds": (_ratio(self.prompt_tokens, prefill), "Prefill, tokens/s."),
            "predicted_tokens_seconds": (_ratio(total.tokens, decode), "Decoding, tokens/s."),
            "requests_processing": (running, "Running answers."),
            "requests_deferred": (waiting, "Answers in the queue."),
            "n_busy_slots_per_decode": (_ratio(self.busy_slots, self.passes), "Answers per pass."),
            "n_tokens_max": (self.max_tokens, "Most tokens of a prompt with its answer."),
        }
        lines: list[str] = []
        for kind, values in (("counter", counters), ("gauge", gauges)):
            for name, (value, text) in values.items():
                lines += _metric(f"llamacpp:{name}", kind, text, {"": value})
        by_position = {f'{{position="{k}"}}': n for k, n in enumerate(total.accepted_by_position)}
        accepted, help = "spec_decode_num_accepted_tokens_per_pos", "Accepted tokens by position."
        lines += _metric(f"llamacpp:{accepted}", "counter", help, by_position)
        lines += _metric("vllm:num_requests_running", "gauge", "Running answers.", {"": running})
        lines += _metric("vllm:num_requests_waiting", "gauge", "Queued answers.", {"": waiting})
        for name, value in (
            ("drafts", drafts), ("draft_tokens", total.drafted),
            ("accepted_tokens", total.accepted),
        ):  # fmt: skip
            text = "Speculative decoding."
            lines += _metric(f"vllm:spec_decode_num_{name}_total", "counter", text, {"": value})
        lines += _metric(f"vllm:{accepted}_total", "counter", help, by_position)
        by_reason = {f'{{reason="{k}"}}': n for k, n in self.answers.items()}
        lines += _metric("dspark:answers_total", "counter", "Answers by how they ended.", by_reason)
        return "\n".join(lines) + "\n"


def _ratio(value: float, of: float) -> float:
    return value / of if of else 0.0


def _metric(name: str, kind: str, text: str, values: Mapping[str, float]) -> list[str]:
    """The lines of a metric, which has a value for each of its labels, or for no label ("")."""
    samples = (f"{name}{labels} {value}" for labels, value in values.items())
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *samples]
