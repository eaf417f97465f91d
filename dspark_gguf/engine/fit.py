"""What a model takes and where, from its file's header: known before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from dspark_gguf.config import MAX_DRAFT, ModelOptions
from dspark_gguf.engine.build import Device
from dspark_gguf.engine.footprint import Footprint
from dspark_gguf.engine.gguf import Header
from dspark_gguf.engine.model import wanted_gpu_layers

#: What compute buffers and other programs need besides, as a share of the memory.
_SPARE = 0.05


@dataclass(frozen=True, slots=True)
class Need:
    """What one model takes.

    Attributes:
        weights: bytes.
        cache: bytes of its cache, snapshots included; an upper bound where layers differ.
        n_ctx: tokens that it is for.
        layers: of the model, the output layer included.
        on_gpu: of these, those that go to a GPU.

    """

    weights: int
    cache: int
    n_ctx: int
    layers: int
    on_gpu: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.cache

    def layers_that_fit(self, free: int) -> int:
        """Layers of which weights and cache fit into so many bytes."""
        each = self.total / max(self.layers, 1)
        return min(self.layers, int(free * (1.0 - _SPARE) / max(each, 1.0)))


def need_of(header: Header, options: ModelOptions, n_ctx: int) -> Need:
    """What the model of this file takes with a context of `n_ctx` tokens."""
    footprint = Footprint(header, options)
    layers = footprint.layers + 1
    return Need(
        weights=footprint.weights,
        cache=footprint.cache_bytes(n_ctx, 1 + footprint.snapshots(MAX_DRAFT)),
        n_ctx=n_ctx,
        layers=layers,
        on_gpu=min(wanted_gpu_layers(options), layers),
    )


def room(devices: list[Device], options: ModelOptions, on_gpu: bool) -> int | None:
    """Bytes that can be had where a model would sit; None where there is no such device."""
    if not on_gpu:
        return next((device.free for device in devices if device.kind == "CPU"), None)
    chosen = [
        device
        for device in devices
        if device.kind in ("GPU", "integrated GPU")
        and (not options.devices or device.name in options.devices)
    ]
    return sum(device.free for device in chosen) or None
