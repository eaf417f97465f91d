"""The work folder: a manifest, the target's conversations, and their recordings."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dspark_gguf.chat.jobs import parse
from dspark_gguf.errors import UsageError
from dspark_gguf.paths import remove_parts, replacing

_ANOTHER = "Name another --work folder."

#: How many of the target's likeliest tokens are kept per row.
LIKELY = 16
#: Seconds of progress that a killed process loses at most.
_SAVE_EVERY = 10.0


@dataclass(frozen=True, slots=True)
class Conversation:
    """Token ids of a prompt and the target's answer, without the end token.

    Everything from token `start` on is the target's own text. If `held` out, it is not trained on.
    """

    prompt: list[int]
    answer: list[int]
    temperature: float
    start: int
    held: bool = False

    @property
    def tokens(self) -> list[int]:
        """All of it."""
        return self.prompt + self.answer


def divided(talks: Sequence[Conversation], block: int) -> tuple[list[int], list[int]]:
    """Places of those to learn from and of those to judge on, with answers of more than a block.

    If the answers to all prompts that were held out are shorter, the greediest of another prompt
    are judged on, and nothing is learned from that one.
    """
    long = [k for k, each in enumerate(talks) if len(each.answer) > block]
    train, held = [[k for k in long if talks[k].held == is_held] for is_held in (False, True)]
    if train and not held:
        first = talks[min(train, key=lambda k: talks[k].temperature)]
        same = [k for k in train if talks[k].prompt == first.prompt]
        if len(same) < len(train):
            train = [k for k in train if talks[k].prompt != first.prompt]
            held = [k for k in same if talks[k].temperature == first.temperature]
    return train, held


class Recorded(NamedTuple):
    """One conversation of n tokens, as the target read it.

    `features` [n, layers, width] are the layer inputs; `ids` [n, 16] and `logs` [n, 16] the
    likeliest tokens after each token and their log probabilities, the likeliest first.
    """

    features: npt.NDArray[np.float16]
    ids: npt.NDArray[np.int32]
    logs: npt.NDArray[np.float16]


class Work:
    """A folder that a later run resumes from; a `UsageError` if it holds something else.

    The manifest's values: seconds `spent` on each step, the `curve` of the fit, and results.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder, self._manifest = folder, folder / "manifest.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.values: dict[str, Any] = {"identity": identity, "spent": {}, "curve": []}
        self._file = folder / "conversations.jsonl"
        if self._manifest.exists() or self._file.exists():
            self.values = _manifest(self._manifest, self.values)
        for key, value in identity.items():
            if (found := self.values["identity"].get(key)) != json.loads(json.dumps(value)):
                problem = f"{folder} is work on another {key}: {found}, not {value}"
                raise UsageError(problem, "Give the same as before, or another --work folder.")
        self.conversations = _conversations(self._file)
        remove_parts(folder, older=3600.0)
        self.save()

    @property
    def tokens(self) -> int:
        """Tokens of all conversations."""
        return sum(len(each.prompt) + len(each.answer) for each in self.conversations)

    def spent(self, step: str) -> float:
        """Seconds spent on a step, in earlier runs and this one."""
        return float(self.values["spent"].get(step, 0.0))

    @property
    def spent_on_data(self) -> float:
        """Seconds spent on generating and recording conversations."""
        return self.spent("generating") + self.spent("recording")

    def spend(self, step: str, seconds: float) -> None:
        """Add to a step's seconds; saved now and then, in case the process is killed."""
        self.values["spent"][step] = self.spent(step) + seconds
        if monotonic() - self._saved > _SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write the manifest, whole or not at all."""
        self._saved = monotonic()
        with replacing(self._manifest) as part:
            part.write_text(json.dumps(self.values, indent=1) + "\n", "utf-8")

    def add(self, conversation: Conversation) -> None:
        """Append a conversation, all of it or nothing: others may follow it."""
        self._file.touch()
        size = self._file.stat().st_size
        try:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(conversation)) + "\n")
        except BaseException:
            os.truncate(self._file, size)
            raise
        self.conversations.append(conversation)


class Recording:
    """Recordings of the first conversations, in flat files that are mapped into memory.

    When opened again, the files are cut after the last whole conversation that is still in the work
    folder; `counts` has the tokens of each conversation there.
    """

    def __init__(self, folder: Path, layers: int, width: int, counts: Sequence[int]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._index = folder / "lengths.u32"
        self._shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
            "features": (np.float16, (layers, width)),
            "ids": (np.int32, (LIKELY,)),
            "logs": (np.float16, (LIKELY,)),
        }
        self._files = {name: folder / f"{name}.bin" for name in self._shapes}
        raw = self._index.read_bytes() if self._index.exists() else b""
        lengths = np.frombuffer(raw[: len(raw) // 4 * 4], np.uint32)
        for path in (self._index, *self._files.values()):
            path.touch()
        room = min(path.stat().st_size // self._bytes(name) for name, path in self._files.items())
        self._starts = [0]
        for length, count in zip(lengths.tolist(), counts, strict=False):
            if length != count or self._starts[-1] + length > room:
                break
            self._starts.append(self._starts[-1] + length)
        os.truncate(self._index, 4 * len(self))
        for name, path in self._files.items():
            os.truncate(path, self._starts[-1] * self._bytes(name))
        self._maps: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def tokens(self) -> int:
        """Number of recorded tokens."""
        return int(self._starts[-1])

    def append(self, new: Recorded) -> None:
        """Append the next conversation; the index is written last."""
        for name, path in self._files.items():
            with path.open("ab") as file:
                file.write(np.ascontiguousarray(getattr(new, name)).tobytes())
        with self._index.open("ab") as file:
            file.write(np.uint32(len(new.ids)).tobytes())
        self._starts.append(self.tokens + len(new.ids))
        self._maps = {}

    def __getitem__(self, k: int) -> Recorded:
        if not self._maps:
            for name, (kind, shape) in self._shapes.items():
                path = self._files[name]
                self._maps[name] = np.memmap(path, kind, "r", shape=(self.tokens, *shape))
        place = slice(self._starts[k], self._starts[k + 1])
        return Recorded(*(self._maps[name][place] for name in Recorded._fields))

    def _bytes(self, name: str) -> int:
        kind, shape = self._shapes[name]
        return int(np.dtype(kind).itemsize * np.prod(shape))


def _manifest(path: Path, usual: dict[str, Any]) -> dict[str, Any]:
    """The values of a manifest; a `UsageError` unless they are complete."""
    found = (path.exists() and parse(path.read_bytes())) or {}
    if any(type(found.get(key)) is not type(value) for key, value in usual.items()):
        raise UsageError(f"{path} is missing, damaged, or not of a training", _ANOTHER)
    return found


def _conversations(path: Path) -> list[Conversation]:
    """Read conversations from JSON lines; cuts off an unfinished last line."""
    if not path.exists():
        return []
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    found = []
    for number, line in enumerate(data[:end].splitlines(), 1):
        try:
            found.append(Conversation(**parse(line) or {}))
        except TypeError:
            problem = f"line {number} of {path} is damaged, or not of a training"
            raise UsageError(problem, _ANOTHER) from None
    if end < len(data):
        os.truncate(path, end)
    return found
