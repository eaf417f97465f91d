"""The caches of a kept conversation: files of llama.cpp, and the record that says what they are.

``caches.json`` names the models that the ``.cache`` files beside it belong to, with checksums. All
are written beside their place and moved there. A cache that is missing, damaged or of other models
costs the time to read the conversation again, and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

from dspark_gguf.chat.session import Session
from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.state import fingerprint, load_state, save_state, state_bytes
from dspark_gguf.paths import replacing, sha256

#: The caches of all sessions together take at most so much; the oldest of others go first.
MOST_BYTES = 8 * 1024**3
#: What saving a cache leaves free on the disk.
LEAVE_FREE = 1024**3
_MIB = 1024**2
_RECORD = "caches.json"


def save_caches(session: Session, folder: Path) -> str:
    """Write all caches of the session's models; says how large they are, or why they are not there.

    Raises:
        OSError: they cannot be written.

    """
    caches = {role: cache for role, cache in session.pair.caches.items() if cache.length}
    size = sum(map(state_bytes, caches.values()))
    if not _has_room(folder, size):
        return f"without its caches, which would take {size / _MIB:.1f} MiB of the disk"
    files = {}
    for role, cache in caches.items():
        with replacing(folder / f"{role}.cache", private=True) as temporary:
            save_state(cache, temporary)
            files[role] = sha256(temporary)
    record = {"models": _models(session.pair), "trail": session.trail, "sha256": files}
    with replacing(folder / _RECORD, private=True) as temporary:
        temporary.write_text(json.dumps(record), "utf-8")
    return f"with its caches, {size / _MIB:.1f} MiB"


def restore_caches(session: Session, folder: Path) -> None:
    """Fill the caches of the session's models with what belongs to them."""
    session.decoder  # noqa: B018 - what is measured for it would empty the caches later
    caches, ours = session.pair.caches, _models(session.pair)
    try:
        record = json.loads((folder / _RECORD).read_text("utf-8"))
        theirs, files = record["models"], record["sha256"]
        session.trail = record["trail"]
        for role, cache in caches.items():
            # What a draft holds may come from the target: that must be the same one too.
            same = all(theirs.get(one) == ours[one] for one in ("target", role))
            path = folder / f"{role}.cache"
            if same and role in files and files[role] == sha256(path):
                load_state(cache, path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return


def _models(pair: Pair) -> dict[str, Any]:
    # Through JSON, as what it is compared with.
    prints = {role: fingerprint(cache) for role, cache in pair.caches.items()}
    plain: dict[str, Any] = json.loads(json.dumps(prints))
    return plain


def _has_room(folder: Path, size: int) -> bool:
    """Whether `size` bytes of caches may be written; old ones of other sessions make room."""
    if size > MOST_BYTES or shutil.disk_usage(folder).free < size + LEAVE_FREE:
        return False
    others = []
    for path in folder.parent.glob("*/*.cache"):
        with contextlib.suppress(OSError):  # a dead link, or gone meanwhile
            if path.parent != folder:
                others.append((path.stat().st_mtime, path.stat().st_size, path))
    total = size
    for _, used, path in sorted(others, reverse=True):
        total += used
        if total > MOST_BYTES:
            path.unlink(missing_ok=True)
    return True
