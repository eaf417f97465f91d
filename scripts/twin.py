"""A llama target in torch: it writes and reads thousands of conversations at once on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from dspark_gguf.engine.gguf import read_header
from dspark_gguf.train.weights import Weights, neox


class Twin:
    """The model of a GGUF of architecture llama, in half precision with float32 residuals."""

    def __init__(self, path: Path, device: torch.device) -> None:
        header, weights = read_header(path), Weights(path)
        self.device, self.layers = device, header.layers
        self.kind = torch.float16 if device.type == "cuda" else torch.float32
        self.heads = header.get("attention.head_count")
        self.kv_heads = header.get("attention.head_count_kv")
        self.epsilon = header.get("attention.layer_norm_rms_epsilon")
        self.base = header.get("rope.freq_base")
        self.embeddings = self._moved(weights["token_embd.weight"])
        self.head = self._moved(weights.head)
        self.width = self.embeddings.shape[1]
        self.size = self.width // self.heads
        self.last_norm = self._moved(weights.last_norm)
        self._blocks = [self._block(weights, k) for k in range(self.layers)]

    def _moved(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device, self.kind)

    def _block(self, weights: Weights, k: int) -> dict[str, Tensor]:
        def part(name: str) -> np.ndarray:
            return weights[f"blk.{k}.{name}.weight"]

        q, key = neox(part("attn_q"), self.heads), neox(part("attn_k"), self.kv_heads)
        arrays = {
            "qkv": np.concatenate([q, key, part("attn_v")]),
            "gate_up": np.concatenate([part("ffn_gate"), part("ffn_up")]),
            "o": part("attn_output"), "down": part("ffn_down"),
            "attn_norm": part("attn_norm"), "ffn_norm": part("ffn_norm"),
        }  # fmt: skip
        return {name: self._moved(array) for name, array in arrays.items()}

    def padded(self, texts: Sequence[Sequence[int]], filler: int) -> Tensor:
        """Texts of several lengths as rows."""
        found = np.full((len(texts), max(map(len, texts))), filler, np.int64)
        for row, each in zip(found, texts, strict=True):
            row[: len(each)] = each
        return torch.from_numpy(found).to(self.device)

    @torch.no_grad()
    def read(self, tokens: Tensor, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Inputs of these layers [c, n, layers, width] and normed last states [c, n, width]."""
        places = torch.arange(tokens.shape[1], device=self.device)[None]
        turn, found = self._angles(places), []
        h = self.embeddings[tokens].float()
        for k, block in enumerate(self._blocks):
            if k in layers:
                found.append(h.clamp(-6e4, 6e4).half())
            q, key, value = self._qkv(block, h, turn)
            out = F.scaled_dot_product_attention(q, key, value, is_causal=True, enable_gqa=True)
            h = self._after(block, h, out)
        features = torch.stack(found, 2) if found else h[:, :, None, :0]
        return features, self._norm(h, self.last_norm)

    @torch.no_grad()
    def write(
        self, prompts: Sequence[Sequence[int]], temperatures: Tensor, most: int, end: int,
        filtered: bool = True,
    ) -> list[list[int]]:  # fmt: skip
        """Answers of at most so many tokens, without the end token."""
        lengths = torch.tensor([len(each) for each in prompts], device=self.device)
        longest, c = int(lengths.max()), len(prompts)
        tokens = self.padded(prompts, end)
        shape = self.layers, c, self.kv_heads, longest + most + 8, self.size
        keys, values = (torch.zeros(shape, dtype=self.kind, device=self.device) for _ in "kv")
        turn = self._angles(torch.arange(longest, device=self.device)[None])
        last = []
        for some in torch.arange(c, device=self.device).split(256):  # prompts: bounded memory
            h = self.embeddings[tokens[some]].float()
            for k, block in enumerate(self._blocks):
                q, key, value = self._qkv(block, h, turn)
                keys[k, some, :, :longest], values[k, some, :, :longest] = key, value
                out = F.scaled_dot_product_attention(q, key, value, is_causal=True, enable_gqa=True)
                h = self._after(block, h, out)
            last.append(h[torch.arange(len(some)), lengths[some] - 1])
        h, places, rows = torch.cat(last), lengths, torch.arange(c, device=self.device)
        written, over = [], torch.zeros(c, dtype=torch.bool, device=self.device)
        for step in range(most):
            logits = F.linear(self._norm(h, self.last_norm), self.head)
            new = draw(logits.float(), temperatures, filtered)
            new = torch.where(over, end, new)
            over |= new == end
            written.append(new)
            if step + 1 == most or (step % 16 == 15 and bool(over.all())):
                break
            turn, span = self._angles(places[:, None]), (longest + step + 8) // 8 * 8
            sees = (torch.arange(span, device=self.device) <= places[:, None])[:, None, None]
            h = self.embeddings[new][:, None].float()
            for k, block in enumerate(self._blocks):
                q, key, value = self._qkv(block, h, turn)
                keys[k, rows, :, places], values[k, rows, :, places] = key[:, :, 0], value[:, :, 0]
                # The query heads of a K/V head are as many rows: nothing is repeated.
                q = q.view(c, self.kv_heads, -1, self.size)
                out = F.scaled_dot_product_attention(
                    q, keys[k, :, :, :span], values[k, :, :, :span], attn_mask=sees
                )
                h = self._after(block, h, out.reshape(c, self.heads, 1, self.size))
            h, places = h[:, 0], places + 1
        found = torch.stack(written, 1).tolist()
        return [each[: each.index(end)] if end in each else each for each in found]

    def _qkv(self, block: dict[str, Tensor], h: Tensor, turn: Tensor) -> tuple[Tensor, ...]:
        both = F.linear(self._norm(h, block["attn_norm"]), block["qkv"])
        inner, kv = self.heads * self.size, self.kv_heads * self.size
        parts = both.split([inner, kv, kv], -1)
        q, key, value = (x.unflatten(-1, (-1, self.size)).transpose(1, 2) for x in parts)
        return self._turned(q, turn), self._turned(key, turn), value

    def _after(self, block: dict[str, Tensor], h: Tensor, attention: Tensor) -> Tensor:
        h = h + F.linear(attention.transpose(1, 2).flatten(2), block["o"])
        gate, up = F.linear(self._norm(h, block["ffn_norm"]), block["gate_up"]).chunk(2, -1)
        return h + F.linear(F.silu(gate) * up, block["down"])

    def _norm(self, x: Tensor, gain: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=self.epsilon).to(self.kind) * gain

    def _angles(self, places: Tensor) -> Tensor:
        half = self.size // 2
        power = -torch.arange(half, device=self.device, dtype=torch.float32) / half
        angles = places[..., None].float() * self.base**power
        return torch.stack([angles.cos(), angles.sin()])[:, :, None].to(self.kind)

    def _turned(self, x: Tensor, turn: Tensor) -> Tensor:
        left, right = x.chunk(2, -1)
        cos, sin = turn
        return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)


def draw(logits: Tensor, temperatures: Tensor, filtered: bool) -> Tensor:
    """A token of each row; `filtered`: by top-k 40, min-p 0.05 and top-p 0.95, as by default."""
    if not filtered:
        return (logits / temperatures[:, None] + noise(logits)).argmax(-1)
    best, ids = logits.topk(40)
    warm = best / temperatures.clamp_min(1e-3)[:, None]
    chances = best.softmax(-1)  # filters before the temperature, as llama.cpp's chain does
    cut = (chances.cumsum(-1) - chances > 0.95) | (chances < 0.05 * chances[:, :1])
    drawn = (warm.masked_fill(cut, -torch.inf) + noise(warm)).argmax(-1)
    drawn = torch.where(temperatures > 0, drawn, 0)
    return ids.gather(1, drawn[:, None])[:, 0]


def noise(like: Tensor) -> Tensor:
    """Gumbel noise: the largest of logits and noise is a draw."""
    return -torch.empty_like(like).exponential_().log()
