"""Is a confidence true? Calibration error, Brier score, AUC, and the paper's correction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from dspark_gguf.calibration import log_odds
from dspark_gguf.errors import UsageError
from dspark_gguf.measure.chains import Chains
from dspark_gguf.measure.charts import Axis, Line, chart, text_table

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_BINS = 15
_TEMPERATURES = np.geomspace(0.2, 5.0, 65)


def calibration_error(chances: Floats, outcomes: Bools) -> float:
    """Expected calibration error: ``|mean chance - share|`` over 15 equal bins, by their weight.

    Args:
        chances: ``[n]``, 0 to 1.
        outcomes: ``[n]``.

    """
    error = 0.0
    for inside in _bins(chances):
        if inside.any():
            gap = abs(chances[inside].mean() - outcomes[inside].mean())
            error += float(gap) * int(inside.sum()) / len(chances)
    return error


def brier_score(chances: Floats, outcomes: Bools) -> float:
    """Mean squared distance of the chance from what happened."""
    return float(((chances - outcomes) ** 2).mean())


def auc(chances: Floats, outcomes: Bools) -> float:
    """Probability that a survivor has the higher chance; equal ones count half. NaN: one kind."""
    yes, no = int(outcomes.sum()), int((~outcomes).sum())
    if not yes or not no:
        return float("nan")
    _, place, counts = np.unique(chances, return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts - 1) / 2.0  # mean rank of each value, from 1
    return float((rank[place][outcomes].sum() - yes * (yes + 1) / 2.0) / (yes * no))


def curve(chances: Floats, outcomes: Bools) -> tuple[list[float], list[float]]:
    """Mean chance and share of survivors in each bin that holds any: the reliability diagram."""
    filled = [inside for inside in _bins(chances) if inside.any()]
    return (
        [float(chances[inside].mean()) for inside in filled],
        [float(outcomes[inside].mean()) for inside in filled],
    )


def fit_temperatures(confidence: Floats, survived: Bools) -> Floats:
    """Sequential Temperature Scaling (DSpark, DeepSeek-AI 2026): a temperature for each position.

    Fitted from left to right: with those before it fixed, each minimises the calibration error of
    the product of confidences up to its position.

    Args:
        confidence: probabilities ``[n, depth]``.
        survived: ``[n, depth]``.

    """
    odds: Floats = np.vectorize(log_odds)(confidence)
    survival: Floats = np.ones(len(odds), dtype=np.float64)
    temperatures = np.ones(odds.shape[1])
    for k in range(odds.shape[1]):
        tried = [survival * _sigmoid(odds[:, k] / t) for t in _TEMPERATURES]
        errors = [calibration_error(chances, survived[:, k]) for chances in tried]
        best = int(np.argmin(errors))
        temperatures[k], survival = _TEMPERATURES[best], tried[best]
    return temperatures


def survivals(confidence: Floats, temperatures: Floats | None = None) -> Floats:
    """Products of the confidences up to each position ``[n, depth]``, scaled if wanted."""
    if temperatures is not None:
        odds: Floats = np.vectorize(log_odds)(confidence)
        confidence = _sigmoid(odds / temperatures)
    return np.cumprod(confidence, axis=1, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Reliability:
    """Figures of half the texts, with temperatures fitted on the other half.

    Attributes:
        temperatures: by position ``[depth]``.
        before: survivals as the draft has them ``[n, depth]``.
        after: the same, scaled.
        survived: what happened ``[n, depth]``.

    """

    temperatures: Floats
    before: Floats
    after: Floats
    survived: Bools

    @classmethod
    def of(cls, texts: Sequence[Chains]) -> Reliability:
        """Fit on every other text, measure on the rest.

        Raises:
            UsageError: fewer than two texts, or scores that are no probabilities.

        """
        if len(texts) < 2:
            raise UsageError(
                f"calibration takes two texts or more, not {len(texts)}",
                "Add one: half of them are to fit, the others to measure.",
            )
        fit, held = _stacked(texts[::2]), _stacked(texts[1::2])
        if fit[0].min() < 0.0 or fit[0].max() > 1.0:
            raise UsageError("the recorded confidences are no probabilities", "Record them anew.")
        temperatures = fit_temperatures(*fit)
        return cls(temperatures, survivals(held[0]), survivals(held[0], temperatures), held[1])

    def as_text(self) -> str:
        """Figures by position, before and after."""
        rows = []
        for k, temperature in enumerate([*self.temperatures, None]):
            part = slice(None) if temperature is None else slice(k, k + 1)
            figures = [
                f"{figure(chances[:, part].ravel(), self.survived[:, part].ravel()):.3f}"
                for figure in (calibration_error, brier_score, auc)
                for chances in (self.before, self.after)
            ]
            name = ["all", ""] if temperature is None else [str(k + 1), f"{temperature:.2f}"]
            rows.append(name + figures)
        figures = ["error", "after", "Brier", "after", "AUC", "after"]
        return text_table(["position", "temperature", *figures], rows)

    def curves(self) -> dict[str, tuple[list[float], list[float]]]:
        """The reliability diagram of the first position, before and after."""
        outcomes = self.survived[:, 0]
        return {
            "before": curve(self.before[:, 0], outcomes),
            "after": curve(self.after[:, 0], outcomes),
        }

    def chart(self) -> Markup:
        """The same, drawn."""
        curves = self.curves().items()
        lines = [Line(name, list(zip(*points, strict=True))) for name, points in curves]
        x, y = (Axis(name, 0, 1, (0, 0.25, 0.5, 0.75, 1)) for name in ("predicted", "survived"))
        title = "Predicted confidence and the share that survived"
        return chart(title, x, y, lines, diagonal=True)


def _stacked(texts: Sequence[Chains]) -> tuple[Floats, Bools]:
    depth = min(text.depth for text in texts)
    confidence = np.concatenate([text.confidence[:, :depth] for text in texts])
    survived = np.concatenate([text.survived[:, :depth] for text in texts])
    return confidence.astype(np.float64), survived


def _bins(chances: Floats) -> list[Bools]:
    place = np.minimum((chances * _BINS).astype(np.intp), _BINS - 1)
    return [place == k for k in range(_BINS)]


def _sigmoid(x: Floats) -> Floats:
    out: Floats = 1.0 / (1.0 + np.exp(-x))
    return out
