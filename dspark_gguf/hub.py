"""Find, download and check models on a hub, through huggingface_hub and its cache."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from dspark_gguf.errors import DSparkError, UsageError, reason_of
from dspark_gguf.naming import HubName, chosen, sidecars_for
from dspark_gguf.paths import require_space, sha256, unwritable, walk

#: OSErrors of a disk; others are the network's. A file can be too large for a file system, such as
#: 4 GB for FAT.
_OF_DISKS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM,
    errno.ENOTDIR,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Download:
    """A model on the hub."""

    repo: str  # such as org/name-GGUF
    files: dict[str, int]  # name -> bytes, the first shard first
    #: Drafts of the model in the same repository, by kind; each like `files`.
    sidecars: dict[str, dict[str, int]] = field(default_factory=dict)


def cache_folder() -> Path:
    """The folder of huggingface_hub's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def find_cached(name: HubName, role: str) -> Path | None:
    """The model's (first) file in the cache; None if it is incomplete. Does not use the network."""
    for _, snapshot in snapshots(name.repo):
        with suppress(UsageError):
            return snapshot / chosen(name, files_of(snapshot), role)[0]
    return None


def snapshots(repo: str = "*/*") -> list[tuple[str, Path]]:
    """Repository and folder of every snapshot in the cache, the current one of each first.

    `scan_cache_dir` of huggingface_hub would read the whole cache for one model, and skip a
    repository with a dead link. The layout is documented: models--ORG--REPO/{refs,blobs,snapshots}.
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


def files_of(folder: Path) -> list[str]:
    """Existing files below a folder, named as in a repository."""
    return [
        (place / name).relative_to(folder).as_posix()
        for place, names in walk(folder)
        for name in names
    ]


def is_offline() -> bool:
    """Whether huggingface_hub is set to offline mode."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def find(name: HubName, role: str) -> Download:
    """The model on the hub, with file sizes; a `UsageError` unless exactly one matches."""
    from huggingface_hub import HfApi

    with _explained(str(name)):
        info = HfApi().model_info(name.repo, files_metadata=True)
    sizes = {each.rfilename: each.size or 0 for each in info.siblings or ()}
    files = {file: sizes[file] for file in chosen(name, sizes, role)}
    beside = sidecars_for(next(iter(files)), sizes) if role != "draft" else {}
    sidecars = {kind: {file: sizes[file] for file in one} for kind, one in beside.items()}
    return Download(name.repo, files, sidecars)


def fetch(download: Download, say: Callable[[str], object]) -> Path:
    """Download the missing files of a model; returns the path of its (first) file.

    `say` is called with a line for each file; huggingface_hub shows a progress bar.
    """
    first, *_ = [_fetch_file(download.repo, file, say) for file in download.files]
    return first


def download(repo_id: str, pattern: str, **places: Any) -> str:
    """Download the file of a repository that matches a name or glob pattern; returns its path.

    `places` are ``local_dir`` and ``cache_dir`` of huggingface_hub. A `UsageError` unless exactly
    one file matches.
    """
    from huggingface_hub import list_repo_files

    with _explained(repo_id):
        files = sorted(list_repo_files(repo_id))
    matching = [file for file in files if fnmatch(file, pattern)]
    if len(matching) != 1:
        found = ", ".join(matching or [file for file in files if file.endswith(".gguf")])
        raise UsageError(
            f"{pattern} matches {len(matching)} files of {repo_id}: {found}"
            if matching
            else f"{pattern} is not in {repo_id}, which has {found or 'no GGUF'}",
            "Name one file.",
        )
    return str(_fetch_file(repo_id, matching[0], str, **places))


def _fetch_file(repo: str, file: str, say: Callable[[str], object], **places: Any) -> Path:
    """Download a file if it is missing, and check its SHA-256.

    huggingface_hub itself only checks the size. It resumes after a broken connection, but starts
    over in the next process: huggingface_hub#4228.
    """
    import huggingface_hub as hf

    with _explained(f"{repo}:{file}"):
        facts = hf.get_hf_file_metadata(hf.hf_hub_url(repo, file))
        if folder := places.get("local_dir"):
            known: Any = Path(folder, file)
        else:
            cache = places.get("cache_dir")
            known = hf.try_to_load_from_cache(repo, file, cache, facts.commit_hash)
        before = _written(known)
        if before is None:
            say(f"downloading {repo}:{file}, {(facts.size or 0) / 1e9:.2f} GB")
        path = Path(hf.hf_hub_download(repo, file, **places))
    is_new = _written(path) != before
    # Small files of a repository have a git hash instead.
    if is_new and re.fullmatch("[0-9a-f]{64}", facts.etag or ""):
        say(f"checking the SHA-256 of {repo}:{file}")
        if sha256(path) != facts.etag:
            for place in {Path(os.path.realpath(path)), path}:
                place.unlink(missing_ok=True)
            raise DSparkError(
                f"{repo}:{file} was damaged in transfer (the hub's SHA-256 is {facts.etag}) and "
                "was deleted",
                "Run it again to download it from the start.",
            )
    return path


def _written(path: Any) -> int | None:
    """When a file was written; None if it is missing, or for huggingface_hub's value for that."""
    try:
        return os.stat(path).st_mtime_ns if isinstance(path, str | Path) else None
    except OSError:
        return None


def require_room(downloads: Sequence[Download]) -> None:
    """Raise a `ResourceError` if the downloads do not fit on the disk, less the cached files."""
    if not downloads:
        return  # the import takes a tenth of a second
    from huggingface_hub import try_to_load_from_cache

    needed = 0
    for each in downloads:
        with _explained(each.repo):
            needed += sum(
                size
                for file, size in each.files.items()
                if not isinstance(try_to_load_from_cache(each.repo, file), str)
            )
    require_space(needed, cache_folder(), "the download", "HF_HOME")


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Translate the errors of huggingface_hub and of its HTTP library."""
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
        if error.errno in _OF_DISKS:
            raise unwritable(cache_folder(), error, "HF_HOME") from None
        raise _unreachable(what, error) from None
    except UnicodeDecodeError as error:
        problem = f"the cache {cache_folder()} is damaged: {reason_of(error)}"
        raise DSparkError(problem, f"Delete its folder of {what} and run it again.") from None
    except errors.HTTPError as error:  # type: ignore[attr-defined] # of the HTTP library in use
        raise _unreachable(what, error) from None


def _unreachable(what: str, error: Exception) -> DSparkError:
    reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
    return DSparkError(
        f"cannot reach the hub for {what} ({reason[:200]})",
        "Run it again when you are online (behind a proxy, set HTTPS_PROXY); complete files are "
        "kept.",
    )
