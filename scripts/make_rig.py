#!/usr/bin/env python3
"""Write the rig: a slow target with exactly the outputs of the demo model, for measurements only.

Between the layers of the demo model, extra layers are inserted. Their weights are row-permuted
copies of real ones, but their two output projections (``attn_output``, ``ffn_down``) are zero. An
extra layer takes its full time and adds nothing to the residual stream. So the text and the
agreement with a draft are real, while a pass costs as much as with a larger model: 120 extra layers
make 560M parameters.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import gguf
import numpy as np
import numpy.typing as npt

from dspark_gguf.catalog.demo import source_model
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.engine.quantize import FILE_TYPES, quantize
from dspark_gguf.paths import replacing

Weights = npt.NDArray[np.float32]
SILENT = ("attn_output.weight", "ffn_down.weight")


def spread_layers(
    layers: list[dict[str, Weights]], extra: int, rng: np.random.Generator
) -> Iterator[dict[str, Weights]]:
    """The real layers in order, with `extra` silent ones spread evenly among them."""
    for k, layer in enumerate(layers):
        yield layer
        count = (k + 1) * extra // len(layers) - k * extra // len(layers)
        for _ in range(count):
            yield {name: silent(name, weights, rng) for name, weights in layer.items()}


def silent(name: str, weights: Weights, rng: np.random.Generator) -> Weights:
    """The weights of an extra layer: zero in its output projections, permuted rows elsewhere."""
    if name in SILENT:
        return np.zeros_like(weights)
    return weights[rng.permutation(len(weights))] if weights.ndim == 2 else weights


def write_rig(source: Path, path: Path, extra: int, seed: int) -> None:
    """Write the model `source` with `extra` silent layers, in F32."""
    reader = gguf.GGUFReader(source)
    arch = reader.get_field("general.architecture").contents()
    shared, layers = read_tensors(reader)
    writer = gguf.GGUFWriter(path, arch)
    copy_metadata(reader, writer, arch, len(layers) + extra)
    for name, weights in shared.items():
        writer.add_tensor(name, weights)
    rng = np.random.default_rng(seed)
    for k, layer in enumerate(spread_layers(layers, extra, rng)):
        for name, weights in layer.items():
            writer.add_tensor(f"blk.{k}.{name}", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_tensors(
    reader: gguf.GGUFReader,
) -> tuple[dict[str, Weights], list[dict[str, Weights]]]:
    """All tensors in float32: those outside the layers; those of each layer, without a prefix."""
    shared: dict[str, Weights] = {}
    layers: dict[int, dict[str, Weights]] = {}
    for tensor in reader.tensors:
        weights = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.name.startswith("blk."):
            _, number, name = tensor.name.split(".", 2)
            layers.setdefault(int(number), {})[name] = weights
        else:
            shared[tensor.name] = weights
    return shared, [layers[number] for number in sorted(layers)]


def copy_metadata(
    reader: gguf.GGUFReader, writer: gguf.GGUFWriter, arch: str, n_layers: int
) -> None:
    """Copy the metadata, except for the number of layers and the quantization."""
    ours = {"general.architecture", "general.file_type", "general.quantization_version"}
    for field in reader.fields.values():
        if field.name in ours or field.name.startswith("GGUF."):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        value = n_layers if field.name == f"{arch}.block_count" else field.contents()
        writer.add_key_value(field.name, value, kind, sub_type=inner)


def move_layers(draft: Path, n_layers: int, extra: int) -> None:
    """Renumber the target layers that a block draft reads, as they are numbered in the rig."""
    field = gguf.GGUFReader(draft, "r+").fields["dflash.target_layers"]
    for k in field.data:
        field.parts[k] += field.parts[k] * extra // n_layers


@click.command()
@click.argument("output", type=Path)
@click.option("--layers", default=120, show_default=True, help="Extra layers.")
@click.option("--type", "file_type", default="Q8_0", type=click.Choice(list(FILE_TYPES)))
@click.option("--seed", default=0, show_default=True, help="Seed of the permutations.")
@click.option("--draft", type=Path, help="Block draft to adapt as well: writes *.rig.gguf.")
def main(output: Path, layers: int, file_type: str, seed: int, draft: Path | None) -> None:
    """Write the rig to OUTPUT: the demo model made slow by extra layers, for measurements only."""
    with tempfile.TemporaryDirectory(dir=output.resolve().parent) as folder:
        wide = Path(folder) / "wide.gguf"
        write_rig(source_model(), wide, layers, seed)
        with replacing(output) as temporary:
            quantize(wide, temporary, file_type)
    print(output)
    if draft is not None:
        with replacing(draft.with_suffix(".rig.gguf")) as temporary:
            shutil.copyfile(draft, temporary)
            move_layers(temporary, read_header(source_model()).layers, layers)
        print(draft.with_suffix(".rig.gguf"))


if __name__ == "__main__":
    main()
