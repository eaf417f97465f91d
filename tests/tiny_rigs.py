"""Tiny rigs: a target that is slow beside its draft, which is right after a share of the tokens."""

from __future__ import annotations

from pathlib import Path

import gguf

from tests.tiny_cycle import CYCLE, N_TOKENS, cycle_output, embedding
from tests.tiny_dflash import Block, write_dflash
from tests.tiny_eagle3 import Eagle, write_cycle_llama, write_eagle3
from tests.tiny_heads import HEADS, TRUNK, Made, write_mtp

#: The drafter of each kind, and how it is called.
KINDS = {
    "draft model": "model",
    "MTP head": "mtp",
    "MTP with 3 heads": "mtp",
    "EAGLE-3": "eagle3",
    "block draft": "block",
}


def write_rig(
    folder: Path, kind: str, agreement: float, layers: int = 24, seed: int = 0
) -> tuple[Path, Path]:
    """A target of so many layers, none of which adds anything, and its draft; by `seed`, right
    after other tokens.
    """
    target, draft = folder / f"target-{seed}.gguf", folder / f"draft-{seed}.gguf"
    if "MTP" in kind:
        heads = 3 if "3 heads" in kind else 1
        made = Made(how="cycle", agreement=agreement, layers=layers, heads=heads, seed=seed)
        if heads == 1:
            return (write_mtp(target, made),) * 2
        return write_mtp(target, made, keep=TRUNK), write_mtp(draft, made, keep=HEADS)
    write_cycle_llama(target, layers=layers)
    if kind == "EAGLE-3":
        return target, write_eagle3(draft, Eagle(agreement=agreement, seed=seed))
    if kind == "block draft":
        return target, _write_block(draft, agreement, seed)
    return target, write_cycle_llama(draft, layers=1, agreement=agreement, seed=seed)


def _write_block(path: Path, agreement: float, seed: int) -> Path:
    """Its Markov head knows the cycle, and nothing else of it adds anything."""
    write_dflash(path, Block(size=8, confidence=False, cycle=tuple(range(N_TOKENS))))
    reader = gguf.GGUFReader(path, "r+")
    for tensor in reader.tensors:
        if tensor.name == "markov_w1.weight":
            tensor.data[:] = embedding()
        elif tensor.name == "markov_w2.weight":
            tensor.data[:] = cycle_output(agreement, seed)
    reader.data.flush()
    return path


#: The beginning of a text.
PROMPT = list(CYCLE[3:15])
