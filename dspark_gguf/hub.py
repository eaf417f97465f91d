"""Models on a hub, through huggingface_hub and its cache: found, downloaded, resumed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from dspark_gguf.errors import DSparkError, ResourceError, UsageError
from dspark_gguf.hub_files import checked_file, fetch_file
from dspark_gguf.naming import HubName, chosen
from dspark_gguf.paths import unwritable, walk

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

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())


def cache_folder() -> Path:
    """Where huggingface_hub keeps what it has downloaded."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached(name: HubName, role: str) -> Path | None:
    """The model's (first) file in the cache; None where it is not there as a whole.

    Asks nobody: neither whether there is a newer one, nor whether there is a network.
    """
    folder = _repository_folder(name.repo)
    try:
        current = (folder / "refs" / "main").read_text("utf-8").strip()
    except (OSError, ValueError):
        current = ""
    for snapshot in sorted(
        _entries(folder / "snapshots"),
        key=lambda path: (path.name == current, _modified(path)),
        reverse=True,
    ):
        try:
            return snapshot / chosen(name, files_of(snapshot), role)[0]
        except UsageError:
            continue
    return None


def _modified(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:  # it vanished meanwhile
        return 0.0


def snapshots(folder: Path) -> Iterator[tuple[str, Path]]:
    """Repository and folder of everything in a cache of huggingface_hub."""
    for repository in _entries(folder):
        kind, _, name = repository.name.partition("--")
        if kind == "models" and "--" in name:
            for snapshot in _entries(repository / "snapshots"):
                yield name.replace("--", "/", 1), snapshot


def files_of(snapshot: Path) -> list[str]:
    """GGUF files of a snapshot, as the repository names them; only those that are there."""
    return [
        (place / name).relative_to(snapshot).as_posix()
        for place, names in walk(snapshot)
        for name in names
        if name.endswith(".gguf")
    ]


def _entries(folder: Path) -> list[Path]:
    """Folders in `folder`, linked ones too; none where it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if os.path.isdir(path))
    except OSError:
        return []


def _repository_folder(repo: str) -> Path:
    # The layout is documented: models--ORG--REPO/{refs,blobs,snapshots}.
    return cache_folder() / f"models--{repo.replace('/', '--')}"


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
        DSparkError: the connection broke (what came is kept, and the next try goes on from there),
            no access.

    """
    paths = []
    for file, size in download.files.items():
        with _explained(f"{download.repo}:{file}"):
            paths.append(
                fetch_file(download.repo, file, size, _repository_folder(download.repo), say)
            )
    return paths[0]


def require_room(downloads: Sequence[Download]) -> None:
    """Refuse before the first byte what would fill the disk.

    Raises:
        ResourceError: with both sizes.

    """
    folder = cache_folder()
    while not folder.exists():
        folder = folder.parent
    needed, free = sum(each.size for each in downloads), shutil.disk_usage(folder).free
    if needed > free:
        raise ResourceError(
            f"{needed / _GB:.1f} GB of disk space in {cache_folder()}",
            f"{free / _GB:.1f} GB",
            "free some, or set HF_HOME to a larger disk",
        )


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Translate huggingface_hub's errors, and those of the HTTP library below it."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise DSparkError(
            f"access to {what}", "a gated repository that you have no access to",
            "accept its licence on its page, then `hf auth login` or set HF_TOKEN",
        ) from None  # fmt: skip
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise UsageError(
            f"a repository on the hub for {what}", "none of that name, or a private one",
            "check the name; for a private one, `hf auth login` or set HF_TOKEN",
        ) from None  # fmt: skip
    except errors.EntryNotFoundError as error:
        if not isinstance(error, errors.LocalEntryNotFoundError):
            raise UsageError(f"{what} on the hub", "no such file", "check the name") from None
        raise _unreachable(what, error) from None
    except errors.OfflineModeIsEnabled:
        raise DSparkError(
            f"{what} in the cache {cache_folder()}", "no such file, and HF_HUB_OFFLINE is set",
            "unset it once to download the model, or name a file",
        ) from None  # fmt: skip
    except errors.HfHubHTTPError as error:
        raise DSparkError(f"{what} from the hub", f"its error {error}", "try again later") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM):
            raise unwritable(cache_folder(), error) from None
        raise _unreachable(what, error) from None
    except _http_error() as error:
        raise _unreachable(what, error) from None


def _http_error() -> type[Exception]:
    # The HTTP library below depends on the version of huggingface_hub; this is its base error.
    from huggingface_hub import errors

    found: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
    return found


def _unreachable(what: str, error: Exception) -> DSparkError:
    reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
    return DSparkError(
        f"the hub, for {what}", f"no connection, or one that broke ({reason[:200]})",
        "run it again when you are online: it goes on where it stopped",
    )  # fmt: skip


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
            f"one file of {repo_id} that matches {pattern}",
            f"{len(matching)}" + (f": {found}" if matching else f"; it has {found or 'no GGUF'}"),
            "name one of them",
        )
    with _explained(f"{repo_id}:{matching[0]}"):
        return str(checked_file(repo_id, matching[0], str, **places))
