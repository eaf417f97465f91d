"""Soak test: long random conversations with every kind of cache, compared with fresh contexts.

    python scripts/soak.py [--turns 10000] [--seed N] [--chapter K]

The models are tiny, in F32, without flash attention: with plain attention, with sliding windows
(kept whole or not), recurrent and hybrid, each with a draft of some other kind, and block drafts
for hybrids. A chapter is 50 turns with one pair. A turn adds a message, edits an earlier one,
repeats the last one or starts over. Now and then the settings change, or the answer is abandoned or
interrupted. After each round, both caches must be prefixes of the conversation. Every few turns, a
fresh context reads the conversation: its logits may differ from those of both caches by at most
2e-3 (logits have a standard deviation of 4), and each token of a greedy answer must be the best one
of its row.

The scheduler uses fixed costs, not the clock, so a chapter can be repeated from its seed. At the
end, the script prints the memory over the last half of the turns, and open files and threads.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from threading import Event, active_count
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dspark_gguf import Decoder, Limits, Sampling, Speculation
from dspark_gguf.config import DraftOptions, ModelOptions
from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.sequence import SequenceCache, open_cache
from dspark_gguf.learned import Learned
from dspark_gguf.learned_costs import LearnedCosts
from dspark_gguf.noise import Noise
from dspark_gguf.records import Round
from tests.tiny_dflash import Block, write_dflash
from tests.tiny_gguf import Tiny
from tests.tiny_kinds import WRITERS

CONTEXT, TURNS, CHECK_EVERY, TOLERANCE = 400, 50, 5, 2e-3
EXACT = {
    "n_ctx": CONTEXT, "n_batch": 64, "n_ubatch": 64, "threads": 1,
    "flash_attn": "off", "cache_type_k": "f32", "cache_type_v": "f32",
}  # fmt: skip
#: Kind of the target, whether its sliding window is kept whole, kind of the draft.
CAST = [
    ("llama", True, "mamba"), ("gemma3", True, "llama"), ("gemma3", False, "lfm2"),
    ("mamba", True, "gemma3"), ("rwkv7", True, "rwkv7"), ("lfm2", True, "qwen35"),
    ("qwen35", True, "qwen3next"), ("qwen3next", True, "mamba"), ("llama", True, "block"),
    ("lfm2", True, "block"), ("qwen35", True, "block"), ("qwen3next", True, "block"),
]  # fmt: skip


class Clockless(LearnedCosts):
    """Fixed costs, under which drafting pays, so that there are many drafts."""

    def __init__(self) -> None:
        super().__init__()
        for rows in (1, 2, 4, 8, 16, 32, 65):
            self.add_pass(rows, 0.01 * (1.0 + 0.05 * rows))
        self.add_first_draft_step(0.002, 1)
        self.add_draft_step(0.001)
        self.profiled = self.limit

    def observe(self, round: Round) -> None:
        """Learn nothing."""


def load(folder: Path, target: str, whole: bool, draft: str) -> Pair:
    """A pair of models; the first call writes their files."""
    noisy = Tiny(context=CONTEXT, noise=0.05)
    paths = [folder / f"{target}.gguf", folder / f"{draft}-draft.gguf"]
    if not paths[0].exists():
        WRITERS[target](paths[0], Tiny(context=CONTEXT))
    if not paths[1].exists():
        if draft == "block":
            write_dflash(paths[1], Block(), Tiny(context=CONTEXT))
        else:
            WRITERS[draft](paths[1], noisy)
    pair = Pair(
        paths[0], paths[1],
        ModelOptions(**EXACT, swa_full=whole), DraftOptions(**EXACT, swa_full=whole),
    )  # fmt: skip
    pair._learned = Learned()  # so that nothing is measured
    pair._learned.costs = Clockless()
    pair._learned.costs.rereads = pair.target_cache.rollback == "replay"
    pair.draft_cache()
    return pair


class Chapter:
    """Fifty turns with one pair.

    Args:
        pair: its caches are emptied first.
        rng: all random choices come from it.
        counts: counts what happens.

    """

    def __init__(self, pair: Pair, rng: np.random.Generator, counts: Counter[str]) -> None:
        self.pair, self.rng, self.counts = pair, rng, counts
        pair.interrupt.clear()
        self.draft: SequenceCache = pair.draft_cache()  # type: ignore[assignment]
        pair.target_cache.trim(0)
        self.draft.trim(0)
        self.prompt: list[int] = []
        self.said: list[int] = []
        self.settings()

    def settings(self) -> None:
        """Choose another rule, drafter, temperature and so on."""
        rng = self.rng
        self.sampling = Sampling(
            temperature=float(rng.choice([0.0, 0.0, 0.7, 1.3])),
            seed=int(rng.integers(2**31)) if rng.random() < 0.3 else None,
            repeat_penalty=float(rng.choice([1.0, 1.8])),
        )
        speculation: dict[str, Any] = {
            "mode": str(rng.choice(["auto", "on", "on", "off"])),
            "rule": str(rng.choice(["auto", "fixed", "threshold", "prefix", "optimal"])),
            "drafter": str(rng.choice(["auto", "model", "lookup"])),
            "acceptance": str(rng.choice(["rejection", "match", "typical", "threshold"])),
            "draft_max": int(rng.integers(1, 20)),
            "draft_min_prob": float(rng.choice([0.0, 0.3])),
        }
        self.speculation = Speculation(**speculation)
        self.decoder = Decoder.for_pair(self.pair, self.sampling, self.speculation)
        self.counts["settings"] += 1

    def next_prompt(self) -> list[int]:
        """The prompt of this turn."""
        rng, tokens = self.rng, [*self.prompt, *self.said]
        what = rng.choice(
            ["say", "say", "say", "edit", "retry", "reset"], p=[0.2] * 4 + [0.15, 0.05]
        )
        if what == "retry" and self.prompt:
            self.counts["retry"] += 1
            return self.prompt
        if what == "reset" or len(tokens) > CONTEXT - 60:
            tokens = []
        elif what == "edit" and tokens:
            tokens = tokens[: int(rng.integers(0, len(tokens)))]
        self.counts[str(what)] += 1
        words = rng.integers(0, 250, int(rng.integers(1, 30))).tolist()
        if len(tokens) > 20 and rng.random() < 0.5:  # a repetition, for prompt lookup
            start = int(rng.integers(0, len(tokens) - 10))
            words += tokens[start : start + 10]
        return [*tokens, *words]

    def turn(self) -> None:
        """One prompt and its answer, or a part of the answer."""
        rng, pair = self.rng, self.pair
        if rng.random() < 0.15:
            self.settings()
        self.prompt, self.said = self.next_prompt(), []
        stop, how = int(rng.integers(0, 25)), rng.random()
        limits = Limits(max_tokens=int(rng.integers(1, 40)))
        answer = Noise(int(rng.integers(2**31)))
        for k, round in enumerate(self.decoder.generate(self.prompt, limits, answer)):
            self.said += round.tokens
            self.counts["rounds"] += bool(round.tokens)
            self.counts["accepted"] += round.accepted
            self.counts["rejected"] += round.accepted < round.drafted
            self.counts["read again"] += round.reread
            self.held()
            if k == stop and how < 0.2:
                self.counts["abandoned"] += 1
                break
            if k == stop and how < 0.4:
                self.counts["interrupted"] += 1
                pair.interrupt.set()
        pair.interrupt.clear()

    def held(self) -> None:
        """Check that the caches of this decoder are prefixes of the conversation."""
        committed = [*self.prompt, *self.said]
        drafter = self.decoder.drafter
        caches = [self.pair.target_cache]
        if getattr(getattr(drafter, "other", drafter), "cache", None) is self.draft:
            caches.append(self.draft)
        for cache in caches:
            if cache.length >= len(committed) or cache.tokens != committed[: cache.length]:
                raise AssertionError(f"a cache of {cache.length} tokens is no prefix")

    def check(self) -> float:
        """The largest difference between the logits of a cache and those of a fresh context."""
        committed = [*self.prompt, *self.said]
        target, worst = self.pair.target_cache, 0.0
        plain = [target] if self.draft.kind == "block" else [target, self.draft]
        for cache in plain:
            last = min(target.max_rows, len(self.said) + 1) if cache is target else 1
            rows = fresh_rows(cache, committed, last)
            cache.reuse_prefix(committed[:-1])
            row = cache.decode(committed[cache.length :], 1)[0]
            worst = max(worst, float(np.abs(row - rows[-1]).max()))
            cache.trim(len(committed) - 1)
            if cache is target:
                self.check_greedy(rows)
        if worst > TOLERANCE:
            raise AssertionError(f"logits differ by {worst:.4f}")
        return worst

    def check_greedy(self, rows: np.ndarray) -> None:
        """Check that each token of a greedy, lossless answer is the best one, up to rounding."""
        plain = self.sampling.repeat_penalty == 1.0 and self.sampling.temperature == 0.0
        if not plain or not self.speculation.lossless:
            return
        for k, token in enumerate(reversed(self.said[-len(rows) + 1 :]), start=2):
            if k <= len(rows) and rows[-k].max() - rows[-k][token] > TOLERANCE:
                raise AssertionError(f"token {-k + 1} of a greedy answer is not the best one")
        self.counts["greedy answers checked"] += 1


def fresh_rows(cache: SequenceCache, tokens: list[int], last: int) -> np.ndarray:
    """Logits after each of the last tokens, from a fresh context."""
    context = open_cache(cache.model, cache.n_ctx, max(last, 2), Event())
    last = min(last, context.max_rows)
    rows = context.decode(tokens, last)
    out = np.stack([rows[k].copy() for k in range(last)])
    context.close()
    return out


def resident() -> int:
    """Resident memory of this process in KiB, after free memory was returned to the system."""
    gc.collect()
    with suppress(AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


def handles() -> tuple[int, int]:
    """Number of open files, and of threads."""
    return len(os.listdir("/proc/self/fd")), active_count()


def soak(turns: int, seed: int, first: int, folder: Path) -> dict[str, Any]:
    """Run `turns` turns from chapter `first` on.

    Raises:
        AssertionError: what went wrong, with the command that repeats it.

    """
    pairs = [load(folder, *cast) for cast in CAST]
    counts: Counter[str] = Counter()
    memory, worst, opened = [], 0.0, handles()
    for chapter in range(first, first + -(-turns // TURNS)):
        place = chapter % len(CAST)
        if chapter % 10 == 9:  # close it and load it again, to find leaks
            pairs[place].close()
            pairs[place] = load(folder, *CAST[place])
        rng = np.random.default_rng((seed, chapter))
        try:
            life = Chapter(pairs[place], rng, counts)
            for turn in range(TURNS):
                life.turn()
                if turn % CHECK_EVERY == 0:
                    worst = max(worst, life.check())
        except Exception as error:
            again = f"python scripts/soak.py --seed {seed} --chapter {chapter} --turns {TURNS}"
            raise AssertionError(f"{CAST[place]}, turn {turn}: {error}; again: {again}") from error
        memory.append(resident())
    late = memory[len(memory) // 2 :]
    for pair in pairs:
        pair.close()
    return {
        "turns": len(memory) * TURNS,
        **counts,
        "worst difference": worst,
        "memory at half and at the end, MiB": [round(k / 1024, 1) for k in (late[0], late[-1])],
        "memory over the last half": round((max(late) - min(late)) / min(late), 4),
        "handles": [opened, handles()],
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "little"))
    parser.add_argument("--chapter", type=int, default=0, help="the first one to run")
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        found = soak(asked.turns, asked.seed, asked.chapter, Path(folder))
    print("\n".join(f"{name}: {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
