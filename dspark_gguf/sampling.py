"""Turn a row of logits into the distribution that a token is drawn from.

The order and the meaning of each step are llama.cpp's (``common/sampling.cpp``,
``src/llama-sampler.cpp``); a test compares every step with its sampler chain.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dspark_gguf.config import Sampling
from dspark_gguf.dist import Dist, Ids, Probabilities
from dspark_gguf.engine.protocol import Tokenizer
from dspark_gguf.errors import EngineError, UsageError

#: Logits of one position, float32 ``[n_vocab]``. A view, never written to.
Row = npt.NDArray[np.float32]

_NONE: Ids = np.zeros(0, dtype=np.int64)
#: In most rows the best 40 logits, and few others, lie within this distance of the best one; if
#: not, or if more than so many do, they are found in another way.
_NEAR, _MANY = 12.0, 1024
#: Below this, a quotient of logits and a temperature could overflow.
_COLD = 1e-100


class NothingLeftError(UsageError):
    """No token is allowed."""

    def __init__(self) -> None:
        super().__init__(
            "no token is allowed next: all of them are forbidden",
            "Forbid fewer in logit_bias, leave out ignore_eos, or correct the grammar.",
        )


class Grammatical(Protocol):
    """A grammar at a position in a text; see ``draft/answer_grammar.py``."""

    def best(self, row: Row, count: int) -> npt.NDArray[np.int32]:
        """Ids that may come next: at least the `count` most probable ones; 0: all."""


class Follower(Grammatical, Protocol):
    """A grammar at the end of the committed text."""

    def follow(self, last: int, token: int) -> None:
        """Continue with `token`, after `last`."""


class Sampler:
    """Makes the distribution of the next token; ``ignore_eos`` forbids all `end_tokens`."""

    def __init__(self, settings: Sampling, end_tokens: Iterable[int] = ()) -> None:
        self.settings = settings
        bias = {token: float(value) for token, value in settings.logit_bias.items()}
        if settings.ignore_eos:
            bias |= dict.fromkeys(end_tokens, -math.inf)
        self._bias_ids = np.array(list(bias), dtype=np.int64)
        self._bias = np.array(list(bias.values()), dtype=np.float32)
        self._last_biased = max(bias, default=-1)
        penalties = settings.repeat_penalty, settings.frequency_penalty, settings.presence_penalty
        penalised, last_n = penalties != (1.0, 0.0, 0.0), settings.repeat_last_n
        #: How many earlier tokens a call needs; None: all of them.
        self.window: int | None = (None if last_n < 0 else last_n) if penalised else 0
        self.greedy = settings.temperature == 0.0
        #: How many of the most probable tokens can be drawn; 0: all of them.
        self.reach = 1 if self.greedy else settings.top_k
        #: Whether more is needed than a threshold below the best logit.
        self._ranks = bool(settings.top_k) or (settings.top_p, settings.typical_p) != (1.0, 1.0)
        #: Logits so far below the best one never survive.
        self._floor = math.log(settings.min_p) if settings.min_p > 0 else -math.inf
        self._counter = _Counter()
        #: Tokens that are never the greedy choice; None: there is more to it than that.
        forbids = self.greedy and self.window == 0 and set(bias.values()) <= {-math.inf}
        self._forbidden = frozenset(bias) if forbids else None

    @classmethod
    def of(cls, settings: Sampling, tokenizer: Tokenizer) -> Sampler:
        """A sampler for a vocabulary.

        Raises a UsageError for a logit bias that is outside of it, or forbids every token.
        """
        sampler, n_vocab = cls(settings, tokenizer.end_tokens), tokenizer.n_vocab
        for token in settings.logit_bias:
            if token >= n_vocab:
                problem = f"token {token} in logit_bias is not in the vocabulary"
                raise UsageError(problem, f"Give ids below {n_vocab}.")
        forbidden = sampler._bias_ids[sampler._bias == -math.inf]
        if len(forbidden) >= n_vocab:
            raise NothingLeftError()
        return sampler

    def history(self, tokens: Sequence[int]) -> Sequence[int]:
        """The last `tokens`, which the penalties apply to."""
        if self.window is None:
            return tokens
        return tokens[-self.window :] if self.window else ()

    def __call__(
        self,
        row: Row,
        history: Sequence[int],
        drafted: Sequence[int] = (),
        grammar: Grammatical | None = None,
    ) -> Dist:
        """Distribution of the token after `row`.

        Args:
            row: logits float32 ``[n_vocab]``, not changed.
            history: the tokens before it, at least the last `window` of them.
            drafted: draft tokens between these and the row.
            grammar: its state at the row; tokens that it forbids have no probability.

        Raises:
            EngineError: the model computed NaN or infinity.
            NothingLeftError: settings or grammar forbid every token.
        """
        if self._forbidden is not None and grammar is None:  # without a copy of the row
            best = int(row.argmax())
            if best not in self._forbidden and math.isfinite(row[best]):
                return Dist.point(best)
        row = self._adjusted(row, history, drafted)
        if grammar is not None:
            allowed = grammar.best(row, self.reach)
            only = np.full_like(row, -np.inf)
            only[allowed] = row[allowed]
            row = only
        best = int(row.argmax())
        top = float(row[best])
        if not math.isfinite(top):
            if top < 0:
                raise NothingLeftError()
            problem = f"the model computed {top} instead of a finite logit"
            raise EngineError(problem, "Check the model file, or turn off GPU offload.")
        if self.greedy or self._is_alone(row, top):
            return Dist.point(best)
        ids, logits = self._candidates(row, top)
        if self.settings.typical_p != 1.0:
            kept = self._typical(_softmax(logits))
            ids, logits = ids[kept], logits[kept]
        if self._ranks:
            order = ids[: self._likeliest(logits)].argsort()
            ids, logits = ids[order], logits[order]
        return Dist(ids, _softmax(logits, self.settings.temperature))

    def _adjusted(self, row: Row, history: Sequence[int], drafted: Sequence[int]) -> Row:
        """Logit bias, then repetition, frequency and presence penalties."""
        if self.window == 0 and not len(self._bias_ids):
            return row
        ids, counts = (_NONE, _NONE) if self.window == 0 else self._seen(history, drafted)
        if not len(self._bias_ids) and not len(ids):
            return row
        row = row.copy()
        if self._last_biased < len(row):
            row[self._bias_ids] += self._bias
        else:
            inside = self._bias_ids < len(row)
            row[self._bias_ids[inside]] += self._bias[inside]
        if len(ids):
            inside = ids < len(row)
            ids, counts = ids[inside], counts[inside]
            logits = row[ids]
            repeat = self.settings.repeat_penalty
            logits = np.where(logits <= 0, logits * repeat, logits / repeat)
            logits -= counts * self.settings.frequency_penalty + self.settings.presence_penalty
            row[ids] = logits
        return row

    def _seen(self, history: Sequence[int], drafted: Sequence[int]) -> tuple[Ids, Ids]:
        """Ids that the penalties apply to, in any order, and their counts."""
        if self.window is None:
            return self._counter.of(history, drafted)
        seen = self.history((*self.history(history), *drafted))
        if not len(seen):
            return _NONE, _NONE
        counts = Counter(seen)  # `np.unique` takes 0.1 ms
        return np.array(list(counts)), np.array(list(counts.values()))

    def _is_alone(self, row: Row, top: float) -> bool:
        """Whether min-p leaves only the best token, whatever the steps before it do."""
        if self._floor == -math.inf or self.settings.typical_p != 1.0:
            return False
        # With a margin for rounding: close cases are decided exactly.
        return bool(np.count_nonzero(row >= top + self._floor - 1e-3) == 1)

    def _candidates(self, row: Row, top: float) -> tuple[Ids, Probabilities]:
        """Ids and logits that top-k leaves, the most probable first; no -inf."""
        k = self.settings.top_k
        if not self._ranks:  # min-p needs neither order nor sum; ids are ascending
            ids = (row >= top + self._floor).nonzero()[0]
            ids = ids[np.isfinite(row[ids])]
            return ids, row[ids].astype(np.float64)
        ids = _likely(row, k, top) if 0 < k < len(row) else np.arange(len(row))
        ids = ids[(-row[ids]).argsort(kind="stable")[: k or None]]
        logits = row[ids].astype(np.float64)
        if logits[-1] == -math.inf:
            count = np.count_nonzero(np.isfinite(logits))
            return ids[:count], logits[:count]
        return ids, logits

    def _typical(self, probs: Probabilities) -> Ids:
        """Locally typical sampling (Meister et al. 2022)."""
        surprise = -np.log(np.maximum(probs, np.finfo(np.float64).tiny))  # 0 of 0 is 0, not NaN
        shift = np.abs(surprise - (probs * surprise).sum())
        order = np.argsort(shift, kind="stable")
        # llama.cpp stops when the sum exceeds p; for top-p, when it reaches p.
        count = int(np.searchsorted(probs[order].cumsum(), self.settings.typical_p, "right")) + 1
        return np.sort(order[:count])

    def _likeliest(self, logits: Probabilities) -> int:
        """How many of these, sorted by probability, top-p and min-p leave."""
        settings, count = self.settings, len(logits)
        if settings.top_p == 1.0 and settings.min_p == 0.0:
            return count
        against_best = np.exp(logits - logits[0])
        if settings.top_p != 1.0:
            sums = against_best.cumsum()
            count = min(count, int(sums.searchsorted(settings.top_p * sums[-1])) + 1)
        if settings.min_p != 0.0:
            count = min(count, int(np.count_nonzero(against_best >= settings.min_p)))
        return count


class _Counter:
    """Counts the tokens of a growing list; reads only the new ones."""

    def __init__(self) -> None:
        self._list: Sequence[int] = ()
        self._read, self._last, self._counts = 0, -1, _NONE

    def of(self, history: Sequence[int], drafted: Sequence[int]) -> tuple[Ids, Ids]:
        """Ids in either of them, ascending, and their counts."""
        grown = history is self._list and len(history) >= self._read
        if not grown or (self._read and history[self._read - 1] != self._last):
            self._list, self._read, self._counts = history, 0, _NONE
        if len(history) > self._read:
            self._counts = self._plus(history[self._read :])
            self._read, self._last = len(history), history[-1]
        counts = self._plus(drafted)
        ids = np.flatnonzero(counts)
        return ids, counts[ids]

    def _plus(self, tokens: Sequence[int]) -> Ids:
        if not len(tokens):
            return self._counts
        counts = np.bincount(tokens, minlength=len(self._counts))
        counts[: len(self._counts)] += self._counts
        return counts


def top_probability(row: Row) -> float:
    """Probability of the most probable token at temperature 1: llama.cpp's p-min score."""
    return float(1.0 / np.exp(row - row.max()).sum(dtype=np.float64))


def margin(row: Row) -> float:
    """Gap between the two largest logits.

    Not with `np.partition`: it takes 0.8 ms on a row that is mostly -inf (reduced vocabulary).
    """
    best = int(row.argmax())
    second = max(part.max() for part in (row[:best], row[best + 1 :]) if len(part))
    return float(row[best] - second)


def _softmax(logits: Probabilities, temperature: float = 1.0) -> Probabilities:
    below = logits - logits.max()
    if temperature != 1.0:
        if temperature < _COLD:  # e**-800 is 0 as well
            below = np.maximum(below, -800.0 * temperature)
        below /= temperature
    probs: Probabilities = np.exp(below)
    probs /= probs.sum()
    return probs


def _likely(row: Row, k: int, top: float) -> Ids:
    """Ids of the `k` largest logits, of ties with the smallest of them, and a few more.

    Partitioning the whole row takes 0.3 ms at 49,152 ids. So those close to the `top` are taken if
    they are enough and not too many. Otherwise the row is folded into columns: at least k logits,
    and few more, reach the k-th largest of the columns' maxima.
    """
    ids: Ids = (row >= top - _NEAR).nonzero()[0]
    if not k <= len(ids) <= max(_MANY, 2 * k):
        columns = len(row) // 64
        maxima = row[: columns * 64].reshape(64, columns).max(axis=0) if columns > k else row.copy()
        maxima.partition(len(maxima) - k)
        ids = (row >= maxima[len(maxima) - k]).nonzero()[0]
    return ids
