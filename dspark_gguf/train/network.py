"""A DSpark draft in torch, computed as llama.cpp's ``dflash`` graph does it.

Context token j: ``g = rms(fc . inputs of the target's layers)``; K and V of every layer come from g
directly. A block at anchor position p has the rows ``[token p, mask, mask ...]`` from position p
on, in the target's own embeddings. They attend to all context before p and to each other in both
directions; row i guesses token p + 1 + i, biased by the token before it (the Markov head).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from dspark_gguf.train.shape import Shape


class Anchors(NamedTuple):
    """Padded blocks: c conversations of up to n tokens, with a anchors each.

    `features` [c, n, layers, width], `places` [c, a] and `tokens` [c, a] of the anchors.
    """

    features: Tensor
    places: Tensor
    tokens: Tensor


class Layer(nn.Module):
    """One layer: attention and a gated feed-forward network, without biases."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, q, kv = shape.width, shape.heads * shape.head, shape.kv_heads * shape.head

        def matrix(inner: int, out: int) -> nn.Linear:
            return nn.Linear(inner, out, bias=False)

        self.q, self.k, self.v, self.o = (
            matrix(width, q), matrix(width, kv), matrix(width, kv), matrix(q, width)
        )  # fmt: skip
        self.gate, self.up = (matrix(width, shape.feed_forward) for _ in range(2))
        self.down = matrix(shape.feed_forward, width)
        self.attn_norm, self.ffn_norm = (nn.Parameter(torch.ones(width)) for _ in range(2))
        # Attention starts a little sharper than with norms of 1.
        self.q_norm, self.k_norm = (
            nn.Parameter(torch.full((shape.head,), 1.5)) for _ in range(2)
        )  # fmt: skip


class Network(nn.Module):
    """The draft. `embeddings` [n_vocab, width] are the target's, frozen.

    `known` [v] are the ids in its vocabulary, `mask` is the id of the mask token.
    """

    embeddings: Tensor
    known: Tensor
    scale: Tensor
    confidence: Tensor

    def __init__(self, shape: Shape, embeddings: Tensor, known: Tensor, mask: int) -> None:
        super().__init__()
        self.shape, self.mask, self.dropout = shape, mask, 0.0
        width, n = shape.width, len(shape.target_layers)
        self.register_buffer("embeddings", embeddings.half(), persistent=False)
        self.register_buffer("known", known)
        #: RMS of each layer's inputs, which grow with depth; part of `fc` in the file.
        self.register_buffer("scale", torch.ones(n))
        self.fc = nn.Linear(n * width, width, bias=False)
        self.context_norm = nn.Parameter(torch.ones(width))
        self.output_norm = nn.Parameter(torch.ones(width))
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.output = nn.Parameter(torch.randn(len(known), width) * width**-0.5)
        self.markov_in = nn.Parameter(torch.randn(shape.n_vocab, shape.rank))
        self.markov_out = nn.Parameter(torch.zeros(len(known), shape.rank))
        #: Weights of the confidence head, fitted last; zeros: no head.
        self.register_buffer("confidence", torch.zeros(width + shape.rank + 1))

    @property
    def has_confidence(self) -> bool:
        """Whether a confidence head was fitted."""
        return bool(self.confidence.any())

    def forward(self, at: Anchors) -> Tensor:
        """Hidden states after the last norm [c, a, block, width]."""
        c, a = at.places.shape
        size, context = self.shape.block, at.features.shape[1]
        mixed = self.fc((at.features.float() / self.scale[:, None]).flatten(2))
        g = self._norm(mixed, self.context_norm)
        ids = at.tokens.new_full((c, a, size), self.mask)
        ids[..., 0] = at.tokens
        h = self.embeddings[ids].float().flatten(1, 2)
        steps = torch.arange(context, device=h.device)
        places = (at.places[..., None] + torch.arange(size, device=h.device)).flatten(1)
        far, near = self._angles(steps[None]), self._angles(places)
        sees = self._sees(at.places, steps)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            h = h + self._drop(self._attention(layer, h, g, near, far, sees))
            x = self._norm(h, layer.ffn_norm)
            h = h + self._drop(layer.down(F.silu(layer.gate(x)) * layer.up(x)))
        return self._norm(h, self.output_norm).view(c, a, size, -1)

    def logits(self, hidden: Tensor, before: Tensor) -> Tensor:
        """Logits of the known tokens; `before` has the id of the token before each guess."""
        both = torch.cat([hidden, F.embedding(before, self.markov_in)], -1)
        return both @ torch.cat([self.output, self.markov_out], 1).T

    @torch.no_grad()
    def guess(self, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Greedy guesses [..., block], as served, and the probability of each.

        Every row is biased by the guess of the row before it.
        """
        before, ids, sure = tokens, [], []
        for k in range(self.shape.block):
            logits = self.logits(hidden[..., k, :], before).float()
            top, best = logits.max(-1)
            sure.append((top - logits.logsumexp(-1)).exp())
            before = self.known[best]
            ids.append(before)
        return torch.stack(ids, -1), torch.stack(sure, -1)

    def _attention(
        self, layer: Layer, h: Tensor, g: Tensor, near: Tensor, far: Tensor, sees: Tensor
    ) -> Tensor:
        x = self._norm(h, layer.attn_norm)
        q = self._turn(layer.q(x), layer.q_norm, near)
        k = torch.cat([self._turn(layer.k(g), layer.k_norm, far),
                       self._turn(layer.k(x), layer.k_norm, near)], 2)  # fmt: skip
        v = torch.cat([self._heads(layer.v(g)), self._heads(layer.v(x))], 2)
        if self.shape.kv_heads != self.shape.heads:
            k, v = (
                y.repeat_interleave(self.shape.heads // self.shape.kv_heads, 1) for y in (k, v)
            )  # fmt: skip
        out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=sees)
        return layer.o(out.transpose(1, 2).flatten(2))

    def _sees(self, places: Tensor, steps: Tensor) -> Tensor:
        """Attention mask [c, 1, a x block, n + a x block]: earlier context and the own block."""
        c, a = places.shape
        size = self.shape.block
        far = (steps < places[..., None]).repeat_interleave(size, 1)
        block = torch.arange(a * size, device=places.device) // size
        near = (block[:, None] == block[None]).expand(c, -1, -1)
        return torch.cat([far, near], 2)[:, None]

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.shape.head)).transpose(1, 2)

    def _turn(self, x: Tensor, gain: Tensor, angles: Tensor) -> Tensor:
        """Norm of each head, then rotary embedding (NEOX: halves)."""
        left, right = self._norm(self._heads(x), gain).chunk(2, -1)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)

    def _angles(self, places: Tensor) -> Tensor:
        half = self.shape.head // 2
        power = -torch.arange(half, device=places.device, dtype=torch.float32) / half
        return places[..., None].float() * self.shape.rope_base**power

    def _norm(self, x: Tensor, gain: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], gain.float(), self.shape.epsilon)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)
