#!/usr/bin/env python3
"""Write other quantizations of the demo model: ``make_demo_pair.py F16 Q8_0 Q2_K -o DIR``.

F16 and Q8_0 targets with a Q2_K draft are the real pairs that measurements use.
"""

from __future__ import annotations

from pathlib import Path

import click

from dspark_gguf.catalog.demo import NAME, source_model
from dspark_gguf.engine.quantize import FILE_TYPES, quantize
from dspark_gguf.paths import replacing


@click.command()
@click.argument("types", nargs=-1, required=True, type=click.Choice(list(FILE_TYPES)))
@click.option("-o", "--output", type=Path, default=Path(), help="Folder.  [here]")
def main(types: tuple[str, ...], output: Path) -> None:
    """Write the demo model in each of TYPES."""
    output.mkdir(parents=True, exist_ok=True)
    for file_type in types:
        path = output / f"{NAME}-{file_type}.gguf"
        with replacing(path) as temporary:
            quantize(source_model(), temporary, file_type)
        print(path)


if __name__ == "__main__":
    main()
