"""Paths of packaged files and of the user's cache and data folders; safe writing of files."""

from __future__ import annotations

import contextlib
import errno
import getpass
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import platformdirs

from dspark_gguf.errors import DSparkError, ResourceError, UsageError, reason_of

#: The suffix of a shard of a split model, as llama.cpp's gguf-split writes it.
SHARD = re.compile(r"-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")

_PART = ".part"
MIB, GIB = 1024**2, 1024**3
#: Errors of a disk, or a share of it, that is full.
_FULL = (errno.ENOSPC, errno.EDQUOT)


def packaged(name: str) -> Path:
    """Path of a packaged file or folder such as ``configs`` or ``models.txt``.

    An installed package contains them; a checkout has them at its top level.
    """
    package = Path(__file__).resolve().parent
    inside = package / name
    return inside if inside.exists() else package.parent / name


def home() -> Path:
    """The user's home folder; a `DSparkError` if there is none, as in some containers."""
    return _existing(Path.home)


def cache_path(*parts: str) -> Path:
    """A folder for things that can be recreated: demo models, learned costs. It may not exist."""
    found = _existing(partial(platformdirs.user_cache_path, "dspark-gguf", appauthor=False))
    return found.joinpath(*parts)


def data_path(*parts: str) -> Path:
    """A folder for the user's data. It may not exist."""
    found = _existing(partial(platformdirs.user_data_path, "dspark-gguf", appauthor=False))
    return found.joinpath(*parts)


def _existing(find: Callable[[], Path]) -> Path:
    with contextlib.suppress(RuntimeError):  # no HOME, and no entry for this user
        if not (found := find()).parts[0].startswith("~"):  # as some versions leave it
            return found
    raise DSparkError("this user has no home folder", "Set HOME to a folder that it can write to.")


def discreet(text: str) -> str:
    """`text` without the home directory and the user's name in paths."""
    with contextlib.suppress(DSparkError):
        for place in {str(home()), str(home().resolve())} - {"/", ""}:
            text = re.sub(rf"{re.escape(place)}(?![\w.-])", "~", text)
    try:
        name = getpass.getuser()
    except (OSError, KeyError, ImportError):  # this user has no entry, as in containers
        return text
    return re.sub(rf"(?<=[/\\]){re.escape(name)}(?=[/\\])", "USER", text) if name else text


def data_dir(*parts: str) -> Path:
    """`data_path`, created if missing; nobody else may read it."""
    for each in (data_path(), data_path(*parts)):
        try:
            each.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(each, error, "XDG_DATA_HOME") from None
        make_private(each)
    return each


def make_private(path: Path) -> None:
    """Let nobody else read or write a file or folder, if the file system has modes."""
    with contextlib.suppress(OSError):  # another user's file, or no modes
        mode = path.stat().st_mode
        if mode & 0o077:
            path.chmod(mode & 0o700)


def read_whole(file: Path | BinaryIO, most: int = 16 * MIB) -> bytes:
    """The bytes of a file, which may be a pipe or a device of any length; an OSError says so."""
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return read_whole(opened, most)
    parts: list[bytes] = []
    while not parts or len(parts[-1]) == MIB:  # a terminal says only once that this is the end
        parts.append(file.read(MIB))
        if sum(map(len, parts)) > most:
            raise OSError(errno.EFBIG, f"it has more than {most // MIB} MiB")
    return b"".join(parts)


def text_or_file(value: str, sign: str, what: str) -> str:
    """`value` if it contains `sign`, else the UTF-8 text of the file of that name."""
    if sign in value:
        return value
    try:
        text = read_whole(Path(os.path.expanduser(value))).decode("utf-8")
        return text.replace("\r\n", "\n")
    except (OSError, ValueError) as error:
        problem = f"--{what} {value} is neither text of this kind nor a file: {reason_of(error)}"
        raise UsageError(problem, "Check the path.") from None


def shards(path: Path) -> list[Path]:
    """All files of a model, given the first one."""
    found = SHARD.search(path.name)
    if found is None:
        return [path]
    start, count = path.name[: found.start()], found["count"]
    return [path.with_name(f"{start}-{k + 1:05}-of-{count}.gguf") for k in range(int(count))]


def size_on_disk(path: Path) -> int:
    """Bytes of a model, all shards together."""
    return sum(each.stat().st_size for each in shards(path))


def walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders below `folder`, each once, with their file names; follows links.

    Skips dead links, link cycles, and whatever cannot be read or vanishes meanwhile: the folder may
    be another program's.
    """
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield Path(place), sorted(name for name in names if os.path.isfile(Path(place, name)))


def require_space(size: int, folder: Path, what: str, variable: str) -> None:
    """Raise an error beforehand if the disk is too small; `variable` moves the folder."""
    place = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(place).free
    if size > free:
        raise ResourceError(
            f"{what} takes {size / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB of free space",
            f"Free some, or set {variable} to a folder on a larger disk.",
        )


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def checksum(path: Path) -> str:
    """A checksum of a file's size and 17 blocks of 64 KiB from start to end.

    For gigabytes written by `replacing`, which leaves no holes after a crash. It takes
    milliseconds, detects truncated and swapped files, and covers every byte up to 1 MiB.
    """
    block, size = 1 << 16, path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for k in range(17):
            file.seek(max(0, size - block) * k // 16)
            digest.update(file.read(block))
    return digest.hexdigest()


def unwritable(folder: Path, error: OSError, variable: str) -> DSparkError:
    """The error to raise if `folder`, which `variable` moves, is not writable."""
    what = "Free space there" if error.errno in _FULL else "Make it writable"
    hint = f"{what}, or set {variable} to another folder."
    return DSparkError(f"cannot write to {folder}: {error.strerror or error}", hint)


@contextlib.contextmanager
def file_errors(verb: str, path: Path, hint: str = "Check the path.") -> Iterator[None]:
    """Turns an OSError into a UsageError: "cannot `verb` the file". A full disk is no wrong use."""
    try:
        yield
    except OSError as error:
        problem = f"cannot {verb} {path}: {reason_of(error)}"
        if error.errno in _FULL:
            raise DSparkError(problem, "Free some space there, or name another place.") from None
        raise UsageError(problem, hint) from None


@contextlib.contextmanager
def caching(path: Path) -> Iterator[Path]:
    """`replacing` in a folder that is created if missing; a `DSparkError` if that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise unwritable(path.parent, error, "XDG_CACHE_HOME") from None


@contextlib.contextmanager
def replacing(path: Path, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`, moved over it only if the block succeeds.

    Readers see the old file or the complete new one, even after a power cut; the last of two
    writers wins. With `private`, nobody else may read it. A symbolic link is kept; for a device or
    named pipe, which cannot be replaced, yields `path` itself. An OSError names `path`.
    """
    if _is_written_directly(path):
        with _named(path, path):
            yield path
        return
    path = Path(os.path.realpath(path))
    # Within the limit of 255 bytes for file names.
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}{_PART}")
    try:
        with _named(path, temporary):
            if private:
                os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # Windows flushes the new name itself
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _is_written_directly(path: Path) -> bool:
    """Whether it is a device or a named pipe."""
    return path.exists() and not path.is_file() and not path.is_dir()


@contextlib.contextmanager
def _named(path: Path, temporary: Path) -> Iterator[None]:
    """Turns an OSError about the temporary file, or without a file, into one about `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def require_writable(path: Path) -> None:
    """Raise a UsageError before the work if `replacing` could not write `path` after it."""
    with file_errors("write", path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not _is_written_directly(path):
            TemporaryFile(dir=os.path.dirname(os.path.realpath(path))).close()


def remove_parts(folder: Path, older: float = 0.0) -> None:
    """Delete temporary files of `replacing` that killed processes left, if `older` (seconds).

    With 0, no other process may be writing there.
    """
    for part in folder.glob(f".*{_PART}"):
        with contextlib.suppress(OSError):
            if not older or time.time() - part.stat().st_mtime > older:
                part.unlink()
