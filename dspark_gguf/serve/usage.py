"""What an answer took, in the words of OpenAI and of llama-server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dspark_gguf.serve.turns import Turn
from dspark_gguf.tally import Tally


def usage(turns: Sequence[Turn]) -> dict[str, Any]:
    """OpenAI's ``usage``: a prompt that has several answers counts once."""
    prompts = {id(turn.prompt): turn for turn in reversed(turns)}.values()
    prompt = sum(len(turn.prompt) for turn in prompts)
    completion = sum(len(turn.answer.tokens) for turn in turns)
    cached = sum(turn.answer.cached_tokens for turn in prompts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def timings(turns: Sequence[Turn]) -> dict[str, Any]:
    """llama-server's ``timings``, in milliseconds."""
    total = Tally()
    for turn in turns:
        total.merge(turn.answer.tally)
    cached = sum(turn.answer.cached_tokens for turn in turns)
    read = sum(turn.answer.prompt_tokens for turn in turns) - cached
    out: dict[str, Any] = {"cache_n": cached}
    for name, count, seconds in (
        ("prompt", read, total.prefill_seconds), ("predicted", total.tokens, total.decode_seconds),
    ):  # fmt: skip
        out |= {
            f"{name}_n": count,
            f"{name}_ms": round(1000 * seconds, 3),
            f"{name}_per_token_ms": round(1000 * seconds / count, 3) if count else 0.0,
            f"{name}_per_second": round(count / seconds, 3) if seconds else 0.0,
        }
    return {**out, "draft_n": total.drafted, "draft_n_accepted": total.accepted}
