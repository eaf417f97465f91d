"""Look for files that make a reader fail, by coverage-guided fuzzing.

``pip install atheris``, then ``python scripts/fuzz.py gguf -max_total_time=600``. The readers are
listed in ``tests/foreign.py``; options after the name go to libFuzzer. It writes a file that makes
the reader fail to the current folder, as ``crash-...``. When you fix the reader, add that file as
an example to ``tests/tiny/test_fuzz.py``.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

with atheris.instrument_imports(include=["dspark_gguf", "yaml", "zipfile"]):
    from dspark_gguf.errors import DSparkError
    from tests.foreign import FOREIGN


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in FOREIGN:
        sys.exit(f"usage: fuzz.py {'|'.join(FOREIGN)} [-runs=N] [-max_total_time=SECONDS] ...")
    foreign = FOREIGN[sys.argv.pop(1)]
    folder = Path(tempfile.mkdtemp())
    corpus = folder / "corpus"
    corpus.mkdir()
    for k, seed in enumerate(foreign.seeds()):
        (corpus / str(k)).write_bytes(seed)
    path = folder / f"file{foreign.ending}"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        with contextlib.suppress(DSparkError):
            foreign.read(path)

    atheris.Setup([*sys.argv, str(corpus)], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
