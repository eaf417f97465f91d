"""Answer the rows of a Ray dataset on all machines of a cluster.

``dataset.map_batches(Answerer, fn_constructor_kwargs={"model": ...})``. Ray itself is not needed
to import this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dspark_gguf.config import Settings
from dspark_gguf.errors import UsageError
from dspark_gguf.settings_files import validate

if TYPE_CHECKING:
    from dspark_gguf.engine.pair import Pair

_COLUMNS = ("prompt", "messages")


class Answerer:
    """Answers batches as a whole; the models are loaded at the first one.

    Its arguments are those of `Settings` as plain values, such as ``model="TARGET.gguf"`` and
    ``limits={"max_tokens": 200}``. `parallel` is the maximum number of conversations in a pass;
    None: as many as pay. An unknown setting or a wrong value is a UsageError.
    """

    def __init__(self, *, parallel: int | None = None, **settings: Any) -> None:
        self._settings: Settings = validate(settings, "Answerer")
        self._parallel = parallel
        self._pair: Pair | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pair": None}  # each process loads its own

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """The batch with two more text columns, ``answer`` and ``error``, one of which is empty.

        Each row has a ``prompt`` or ``messages``. A row that cannot be answered does not affect the
        others.

        Raises:
            UsageError: neither column exists, or the batch is an Arrow table.
            DSparkError: the models cannot be loaded (``catalog.load_pair``).
        """
        import numpy as np

        from dspark_gguf.chat.answers import answer_all
        from dspark_gguf.chat.jobs import Job

        jobs = [Job(index, row) for index, row in enumerate(_rows(batch))]
        # Text in every row: a column of only None has a type of its own in Arrow.
        answers, errors = (np.full(len(jobs), "", dtype=object) for _ in range(2))
        for job, outcome in answer_all(self._loaded(), self._settings, jobs, self._parallel):
            answers[job.index] = outcome.get("text", "")
            errors[job.index] = outcome.get("error", "")
        return {**batch, "answer": answers, "error": errors}

    def _loaded(self) -> Pair:
        if self._pair is None:
            from dspark_gguf.catalog import load_pair
            from dspark_gguf.chat.answers import MAX_AT_ONCE

            settings = self._settings
            self._pair = load_pair(
                settings.model,
                settings.draft,
                target_options=settings.target_options,
                draft_options=settings.draft_options,
                chat_template=settings.chat.chat_template,
                conversations=self._parallel or MAX_AT_ONCE,
            )
        return self._pair


def _rows(batch: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """The input of each row: its values of the two columns."""
    if not hasattr(batch, "keys"):
        hint = "Leave batch_format out, or give pandas."
        raise UsageError(f"a batch is a {type(batch).__name__}, and not columns by name", hint)
    found = [name for name in _COLUMNS if name in batch]
    if not found:
        problem = f"a batch has neither of the columns {' and '.join(_COLUMNS)}"
        raise UsageError(problem, f"It has {', '.join(batch)}.")
    for values in zip(*(batch[name] for name in found), strict=True):
        row = {name: _plain(value) for name, value in zip(found, values, strict=True)}
        # Missing values are None, or NaN or NA from pandas, which do not equal themselves.
        yield {
            name: value
            for name, value in row.items()
            if value is not None and (value == value) is True
        }


def _plain(value: Any) -> Any:
    """A plain value: no numpy types, no None keys, which Arrow adds from other rows' messages."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items() if each is not None}
    return [_plain(each) for each in value] if isinstance(value, list) else value
