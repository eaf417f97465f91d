"""Counters under the names that llama-server and vLLM use, for Prometheus."""

from __future__ import annotations

from dataclasses import dataclass, field

from dspark_gguf.tally import Answer, Tally


@dataclass
class Metrics:
    """Sums since the start; written by the engine's thread alone."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    passes: int = 0
    busy: int = 0  # conversations, summed over passes
    max_tokens: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    total: Tally = field(default_factory=Tally)

    def add_pass(self, running: int) -> None:
        """Count a pass that so many conversations shared."""
        self.passes += 1
        self.busy += running

    def add_answer(self, answer: Answer, reason: str) -> None:
        """Count one that is over."""
        self.answers[reason] = self.answers.get(reason, 0) + 1
        self.prompt_tokens += answer.prompt_tokens - answer.cached_tokens
        self.cached_tokens += answer.cached_tokens
        self.max_tokens = max(self.max_tokens, answer.prompt_tokens + len(answer.tokens))
        self.total.merge(answer.tally)

    def text(self, running: int, waiting: int) -> str:
        """In Prometheus' format."""
        total, drafts = self.total, self.total.rounds - self.total.plain_rounds
        decoding, reading = total.decode_seconds, total.prefill_seconds
        llama = {
            "prompt_tokens_total": (self.prompt_tokens, "Prompt tokens that were read."),
            "prompt_seconds_total": (reading, "Seconds of reading prompts."),
            "tokens_predicted_total": (total.tokens, "Tokens of answers."),
            "tokens_predicted_seconds_total": (decoding, "Seconds of answering."),
            "prompt_tokens_cached_total": (self.cached_tokens, "Prompt tokens found in a cache."),
            "n_decode_total": (self.passes, "Passes of the target."),
            "spec_decode_num_drafts": (drafts, "Rounds with a draft."),
            "spec_decode_num_draft_tokens": (total.drafted, "Draft tokens verified."),
            "spec_decode_num_accepted_tokens": (total.accepted, "Draft tokens accepted."),
        }
        gauges = {
            "prompt_tokens_seconds": (_per(self.prompt_tokens, reading), "Prompt tokens a second."),
            "predicted_tokens_seconds": (_per(total.tokens, decoding), "Answer tokens a second."),
            "requests_processing": (running, "Answers being made."),
            "requests_deferred": (waiting, "Requests in the queue."),
            "n_busy_slots_per_decode": (_per(self.busy, self.passes), "Conversations in a pass."),
            "n_tokens_max": (self.max_tokens, "Largest number of tokens of a conversation."),
        }
        lines: list[str] = []
        for kind, values in (("counter", llama), ("gauge", gauges)):
            for name, (value, text) in values.items():
                lines += _metric(f"llamacpp:{name}", kind, text, value)
        lines += _by_position("llamacpp:spec_decode_num_accepted_tokens_per_pos", total)
        lines += _metric("vllm:num_requests_running", "gauge", "Answers being made.", running)
        lines += _metric("vllm:num_requests_waiting", "gauge", "Requests in the queue.", waiting)
        for name, value in (
            ("drafts", drafts), ("draft_tokens", total.drafted),
            ("accepted_tokens", total.accepted),
        ):  # fmt: skip
            text = "Speculative decoding."
            lines += _metric(f"vllm:spec_decode_num_{name}_total", "counter", text, value)
        lines += _by_position("vllm:spec_decode_num_accepted_tokens_per_pos_total", total)
        lines += [
            "# HELP dspark:answers_total Answers by how they ended.",
            "# TYPE dspark:answers_total counter",
            *(f'dspark:answers_total{{reason="{k}"}} {n}' for k, n in self.answers.items()),
        ]
        return "\n".join(lines) + "\n"


def _per(count: float, of: float) -> float:
    return count / of if of else 0.0


def _metric(name: str, kind: str, text: str, value: float) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name} {value}"]


def _by_position(name: str, total: Tally) -> list[str]:
    counts = enumerate(total.accepted_by_position)
    return [
        f"# HELP {name} Accepted draft tokens by place in the draft.",
        f"# TYPE {name} counter",
        *(f'{name}{{position="{k}"}} {count}' for k, count in counts),
    ]
