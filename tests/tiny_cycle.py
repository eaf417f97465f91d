"""A cycle of tokens that tiny models say: vectors, and the matrices that know what follows."""

from __future__ import annotations

import numpy as np

WIDTH, INNER, N_TOKENS = 64, 128, 263
#: The tokens of the cycle, in order; those after them are never said.
CYCLE = tuple(range(65, 105))
ONES = np.ones(WIDTH, dtype=np.float32)


def embedding():
    """Rows that norms leave alone, with a mean of zero; those of the cycle are orthogonal."""
    rows = np.random.default_rng(45).standard_normal((N_TOKENS, WIDTH))
    rows -= rows.mean(axis=1, keepdims=True)
    rows /= np.sqrt((rows**2).mean(axis=1, keepdims=True))
    some = np.random.default_rng(6).standard_normal((WIDTH, WIDTH))
    basis, _ = np.linalg.qr(some - some.mean(axis=0))
    rows[list(CYCLE)] = basis.T[: len(CYCLE)] * WIDTH**0.5
    return rows.astype(np.float32)


def successor(token, steps=1):
    """What comes so many steps after a token of the cycle."""
    return CYCLE[(CYCLE.index(token) + steps) % len(CYCLE)]


def cycle_output(agreement=1.0, seed=0):
    """The output head that says each token's successor.

    After a share of the tokens it says another one. What it says first wins by a gap that is
    distributed as those of real drafts of this agreement: it is right more often where it is sure.
    """
    vectors, rows = embedding(), np.zeros((N_TOKENS, WIDTH), dtype=np.float32)
    if agreement == 1.0:
        for token in CYCLE:
            rows[successor(token)] = vectors[token]
        return rows
    rng = np.random.default_rng(seed)
    gaps = 4.0 * agreement**2 * rng.exponential(size=len(CYCLE))
    luck = rng.logistic(size=len(CYCLE))
    right = np.argsort(-gaps - luck)[: round(agreement * len(CYCLE))]
    for k, token in enumerate(CYCLE):
        says = [successor(token), successor(token, 7)][:: 1 if k in right else -1]
        for said, logit in zip(says, (20.0, 20.0 - gaps[k]), strict=True):
            rows[said] += vectors[token] * logit / WIDTH
    return rows


def mover(steps=1):
    """The matrix that turns a token of the cycle into one further on."""
    vectors = embedding()
    pairs = ((vectors[successor(token, steps)], vectors[token]) for token in CYCLE)
    return (sum(np.outer(*pair) for pair in pairs) / WIDTH).astype(np.float32)


def drawing(seed):
    """A function that draws matrices, ``(rows, columns)``, with a scale."""
    rng = np.random.default_rng(seed)

    def draw(*shape, scale=1.0):
        values = rng.standard_normal(shape) * scale * shape[-1] ** -0.5
        return values.astype(np.float32)

    return draw
