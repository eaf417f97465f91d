"""Models on a hub, through huggingface_hub and its cache: found, downloaded, checked."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from dspark_gguf.errors import DSparkError, ResourceError, UsageError
from dspark_gguf.naming import HubName, chosen
from dspark_gguf.paths import sha256, unwritable, walk

_GB = 1e9


@dataclass(frozen=True, slots=True)
class Download:
    """A model that the hub has.

    Attributes:
        repo: such as ``org/name-GGUF``.
        files: name -> bytes, the first shard first.

    """

    repo: str
    files: dict[str, int]


def cache_folder() -> Path:
    """Where huggingface_hub keeps what it has downloaded."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached(name: HubName, role: str) -> Path | None:
    """The model's (first) file in the cache; None if it is not complete there. Uses no network."""
    for _, snapshot in snapshots(name.repo):
        with suppress(UsageError):
            return snapshot / chosen(name, files_of(snapshot), role)[0]
    return None


def snapshots(repo: str = "*/*") -> list[tuple[str, Path]]:
    """Repository and folder of every snapshot in the cache; of each, the current one first.

    `scan_cache_dir` of huggingface_hub reads the whole cache for one model, and drops a repository
    with one dead link. The layout is documented: models--ORG--REPO/{refs,blobs,snapshots}.
    """

    def order(snapshot: Path) -> tuple[str, bool, float]:
        repository, current, modified = snapshot.parents[1], "", 0.0
        with suppress(OSError, ValueError):
            current = (repository / "refs" / "main").read_text("utf-8").strip()
        with suppress(OSError):  # it vanished meanwhile
            modified = snapshot.stat().st_mtime
        return repository.name, snapshot.name != current, -modified

    found = cache_folder().glob(f"models--{repo.replace('/', '--')}/snapshots/*")
    return [
        (path.parents[1].name.removeprefix("models--").replace("--", "/", 1), path)
        for path in sorted(found, key=order)
    ]


def files_of(snapshot: Path) -> list[str]:
    """GGUF files of a snapshot, as the repository names them; only those that are there."""
    return [
        (place / name).relative_to(snapshot).as_posix()
        for place, names in walk(snapshot)
        for name in names
        if name.endswith(".gguf")
    ]


def is_offline() -> bool:
    """Whether the user has forbidden huggingface_hub to ask the hub."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def find(name: HubName, role: str) -> Download:
    """The model on the hub, and how large it is.

    Raises:
        UsageError: no such repository, or not one model.
        DSparkError: no access, no network.

    """
    from huggingface_hub import HfApi

    with _explained(str(name)):
        info = HfApi().model_info(name.repo, files_metadata=True)
    sizes = {each.rfilename: each.size or 0 for each in info.siblings or ()}
    return Download(name.repo, {file: sizes[file] for file in chosen(name, sizes, role)})


def fetch(download: Download, say: Callable[[str], object] = str) -> Path:
    """Download what the cache lacks of a model; returns the path of its (first) file.

    Args:
        download: from `find`.
        say: called with a line for each file; huggingface_hub draws the bar.

    Raises:
        DSparkError: the connection broke, no access, or a file is not the one on the hub.

    """
    first, *_ = [_fetch_file(download.repo, file, say) for file in download.files]
    return first


def downloaded(repo_id: str, pattern: str, **places: Any) -> str:
    """The path of the one file of a repository that matches.

    Args:
        repo_id: such as ``org/name-GGUF``.
        pattern: the file's name, or a glob pattern.
        places: ``local_dir``, ``cache_dir`` of huggingface_hub.

    Raises:
        UsageError: no file or several match.
        DSparkError: no access, no network.

    """
    from huggingface_hub import list_repo_files

    with _explained(repo_id):
        files = sorted(list_repo_files(repo_id))
    matching = [file for file in files if fnmatch(file, pattern)]
    if len(matching) != 1:
        found = ", ".join(matching or [file for file in files if file.endswith(".gguf")])
        raise UsageError(
            f"{pattern} means {len(matching)} files of {repo_id}: {found}"
            if matching
            else f"{pattern} is not in {repo_id}, which has {found or 'no GGUF'}",
            "Name one file.",
        )
    return str(_fetch_file(repo_id, matching[0], str, **places))


def _fetch_file(repo: str, file: str, say: Callable[[str], object], **places: Any) -> Path:
    """A file, downloaded unless it is there; what is new has the hub's SHA-256.

    huggingface_hub itself checks the size alone. It resumes after a broken connection, but starts
    over in the next process: huggingface_hub#4228.
    """
    from huggingface_hub import (
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )

    with _explained(f"{repo}:{file}"):
        facts = get_hf_file_metadata(hf_hub_url(repo, file))
        if folder := places.get("local_dir"):
            is_new = not Path(folder, file).is_file()
        else:
            known = try_to_load_from_cache(repo, file, places.get("cache_dir"), facts.commit_hash)
            is_new = not isinstance(known, str)
        if is_new:
            say(f"downloading {repo}:{file}, {(facts.size or 0) / _GB:.2f} GB")
        path = Path(hf_hub_download(repo, file, **places))
    # Small files of a repository have a git hash instead.
    if is_new and re.fullmatch("[0-9a-f]{64}", facts.etag or ""):
        say(f"checking the SHA-256 of {repo}:{file}")
        if sha256(path) != facts.etag:
            for place in {Path(os.path.realpath(path)), path}:
                place.unlink(missing_ok=True)
            raise DSparkError(
                f"{repo}:{file} was damaged on the way (the hub's SHA-256 is {facts.etag}) and is "
                "deleted",
                "Run it again to download it from the start.",
            )
    return path


def require_room(downloads: Sequence[Download]) -> None:
    """Refuse before the first byte what would fill the disk.

    Raises:
        ResourceError: with both sizes.

    """
    folder = cache_folder()
    while not folder.exists():
        folder = folder.parent
    needed = sum(sum(each.files.values()) for each in downloads)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ResourceError(
            f"the download takes {needed / _GB:.1f} GB, but {cache_folder()} has {free / _GB:.1f} "
            "GB of free space",
            "Free some, or set HF_HOME to a folder on a larger disk.",
        )


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Translate huggingface_hub's errors, and those of the HTTP library below it."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        problem = f"{what} is in a gated repository that you have no access to"
        hint = "Accept its licence on its page, then run `hf auth login` or set HF_TOKEN."
        raise DSparkError(problem, hint) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        hint = "Check the name. For a private one, run `hf auth login` or set HF_TOKEN."
        raise UsageError(f"the hub has no repository for {what}, or it is private", hint) from None
    except errors.LocalEntryNotFoundError as error:
        raise _unreachable(what, error) from None
    except errors.EntryNotFoundError:
        raise UsageError(f"{what} is not on the hub", "Check the name.") from None
    except errors.OfflineModeIsEnabled:
        problem = f"{what} is not in the cache {cache_folder()}, and HF_HUB_OFFLINE is set"
        hint = "Unset it once to download the model, or name a file."
        raise DSparkError(problem, hint) from None
    except errors.HfHubHTTPError as error:
        raise DSparkError(f"the hub failed for {what}: {error}", "Try again later.") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM):
            raise unwritable(cache_folder(), error) from None
        raise _unreachable(what, error) from None
    except errors.HTTPError as error:  # type: ignore[attr-defined] # of the HTTP library in use
        raise _unreachable(what, error) from None


def _unreachable(what: str, error: Exception) -> DSparkError:
    reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
    return DSparkError(
        f"cannot reach the hub for {what} ({reason[:200]})",
        "Run it again when you are online; it keeps the files that are complete.",
    )
