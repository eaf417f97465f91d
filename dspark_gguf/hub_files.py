"""One file of a hub, in its cache: gone on with where an earlier try stopped, and checked."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspark_gguf.errors import DSparkError
from dspark_gguf.paths import sha256

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

_GB = 1e9


def fetch_file(repo: str, file: str, size: int, folder: Path, say: Callable[[str], object]) -> Path:
    """A file in the cache, downloaded unless it is there.

    Args:
        repo: such as ``org/name-GGUF``.
        file: its name there.
        size: bytes of it.
        folder: of the repository in the cache.
        say: called with a line when something takes long.

    Raises:
        DSparkError: it does not have the SHA-256 that the hub tells.
        OSError: also of huggingface_hub's kinds.

    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.file_download import are_symlinks_supported

    # Larger files come in another way only; without links the blob would be copied.
    if size <= constants.MAX_HTTP_DOWNLOAD_SIZE and are_symlinks_supported(folder.parent):
        _fill_blob(repo, file, folder, _facts(repo, file), say)
        return Path(hf_hub_download(repo, file))
    return checked_file(repo, file, say)


def checked_file(repo: str, file: str, say: Callable[[str], object], **places: Any) -> Path:
    """As huggingface_hub downloads it, which looks at the size alone; what is new is checked."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if folder := places.get("local_dir"):
        known = str(Path(folder, file)) if Path(folder, file).is_file() else None
    else:
        known = try_to_load_from_cache(repo, file, cache_dir=places.get("cache_dir"))
    path = Path(hf_hub_download(repo, file, **places))
    if str(path) != known:
        _require_sum(path, f"{repo}:{file}", _facts(repo, file), say)
    return path


def _facts(repo: str, file: str) -> HfFileMetadata:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    return get_hf_file_metadata(hf_hub_url(repo, file))


def _fill_blob(
    repo: str, file: str, folder: Path, facts: HfFileMetadata, say: Callable[[str], object]
) -> None:
    """Download the blob of a file into the cache, from where an earlier try has stopped.

    huggingface_hub goes on after a broken connection, but begins anew in the next process since
    its version 1.x: for a file of 20 GB that is a lost evening. Its reason is that two processes
    spoil what they both append to where locks do nothing (huggingface_hub#4228); here the checksum
    finds that out. What it is left to do after this is the link from the snapshot to the blob.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        WeakFileLock,
        build_hf_headers,
    )

    size = facts.size or 0
    blob = folder / "blobs" / str(facts.etag)
    # As older versions of huggingface_hub call it, which go on with it too.
    part = blob.with_name(f"{blob.name}.incomplete")
    lock = folder.parent / ".locks" / folder.name / f"{blob.name}.lock"
    for path in (blob, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return
        with part.open("ab") as stream:
            if size and stream.tell() > size:  # another file's, or of two writers
                stream.truncate(0)
                stream.seek(0)
            begun = stream.tell()
            rest = f", the rest after {begun / _GB:.2f} GB" if begun else ""
            say(f"downloading {repo}:{file}, {size / _GB:.2f} GB{rest}")
            http_get(
                hf_hub_url(repo, file), stream, resume_size=begun, headers=build_hf_headers(),
                expected_size=facts.size, displayed_filename=file,
            )  # fmt: skip
        _require_sum(part, f"{repo}:{file}", facts, say)
        os.replace(part, blob)


def _require_sum(
    path: Path, what: str, facts: HfFileMetadata, say: Callable[[str], object]
) -> None:
    """Delete a download that is not what the hub has; large files are known by their SHA-256.

    Raises:
        DSparkError: it was not.

    """
    if not re.fullmatch("[0-9a-f]{64}", facts.etag or ""):
        return
    say(f"checking the SHA-256 of {what}")
    if sha256(path) != facts.etag:
        for place in {Path(os.path.realpath(path)), path}:
            place.unlink(missing_ok=True)
        raise DSparkError(
            f"{what} with the SHA-256 that the hub tells, {facts.etag}",
            "another one: the download was damaged, and is deleted",
            "run it again: it begins anew",
        )
