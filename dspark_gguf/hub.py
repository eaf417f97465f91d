"""Files from a model hub, through huggingface_hub and its cache."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

from dspark_gguf.errors import UsageError


def downloaded(repo_id: str, pattern: str, **places: Any) -> str:
    """The path of the one file of a repository that matches.

    Args:
        repo_id: such as ``org/name-GGUF``.
        pattern: the file's name, or a glob pattern.
        places: ``local_dir``, ``cache_dir`` of huggingface_hub.

    Raises:
        UsageError: no file or several match.

    """
    from huggingface_hub import hf_hub_download, list_repo_files

    files = sorted(list_repo_files(repo_id))
    matching = [file for file in files if fnmatch(file, pattern)]
    if len(matching) != 1:
        found = ", ".join(matching or [file for file in files if file.endswith(".gguf")])
        raise UsageError(
            f"one file of {repo_id} that matches {pattern}",
            f"{len(matching)}" + (f": {found}" if matching else f"; it has {found or 'no GGUF'}"),
            "name one of them",
        )
    return str(hf_hub_download(repo_id, matching[0], **places))
