"""Can a confidence be trusted? Calibration error, Brier score, AUC, and the paper's correction.

Chances are floats ``[n]`` from 0 to 1, outcomes are bools of the same shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from dspark_gguf.arrays import Bools, Floats
from dspark_gguf.errors import UsageError
from dspark_gguf.measure.chains import Chains, odds
from dspark_gguf.measure.charts import SHARES, Axis, Line, chart
from dspark_gguf.visible import text_table

_BINS, _FEW = 15, 5
_TEMPERATURES = np.geomspace(0.2, 5.0, 65)


def calibration_error(chances: Floats, outcomes: Bools) -> float:
    """Expected calibration error: ``|mean chance - share|`` over 15 equal bins, by their weight."""
    gaps = [abs(chance - share) * weight for chance, share, weight in bins(chances, outcomes)]
    return sum(gaps) / len(chances)


def brier_score(chances: Floats, outcomes: Bools) -> float:
    """Mean squared difference between the chance and the outcome."""
    return float(((chances - outcomes) ** 2).mean())


def auc(chances: Floats, outcomes: Bools) -> float:
    """Probability that a survivor has the higher chance; ties count half. NaN if all are alike."""
    survivors, others = chances[outcomes], np.sort(chances[~outcomes])
    if not len(survivors) or not len(others):
        return float("nan")
    below = others.searchsorted(survivors) + others.searchsorted(survivors, "right")
    return float(below.mean()) / (2 * len(others))


def bins(chances: Floats, outcomes: Bools) -> list[tuple[float, float, int]]:
    """Mean chance, share of survivors and size of each bin that holds any."""
    place = np.minimum((chances * _BINS).astype(np.intp), _BINS - 1)
    filled = [place == k for k in np.unique(place)]
    return [
        (float(chances[inside].mean()), float(outcomes[inside].mean()), int(inside.sum()))
        for inside in filled
    ]


def fit_temperatures(confidence: Floats, survived: Bools) -> Floats:
    """Sequential Temperature Scaling (DSpark, DeepSeek-AI 2026): a temperature for each position.

    Fitted from left to right: with those before it fixed, each minimises the calibration error of
    the product of confidences up to its position. Both arrays are ``[n, depth]``.
    """
    scores = odds(confidence)
    survival: Floats = np.ones(len(scores), dtype=np.float64)
    temperatures = np.ones(scores.shape[1])
    for k in range(scores.shape[1]):
        tried = [survival * _sigmoid(scores[:, k] / t) for t in _TEMPERATURES]
        errors = [calibration_error(chances, survived[:, k]) for chances in tried]
        best = int(np.argmin(errors))
        temperatures[k], survival = _TEMPERATURES[best], tried[best]
    return temperatures


def survivals(confidence: Floats, temperatures: Floats | None = None) -> Floats:
    """Products of the confidences up to each position ``[n, depth]``, scaled if wanted."""
    if temperatures is not None:
        confidence = _sigmoid(odds(confidence) / temperatures)
    return np.cumprod(confidence, axis=1, dtype=np.float64)


def _sigmoid(x: Floats) -> Floats:
    out: Floats = 1.0 / (1.0 + np.exp(-x))
    return out


@dataclass(frozen=True, slots=True)
class Reliability:
    """Figures of half the texts, with temperatures fitted on the other half."""

    temperatures: Floats  # by position [depth]
    before: Floats  # survival probabilities of the draft itself [n, depth]
    after: Floats  # the same after scaling
    survived: Bools  # what happened [n, depth]

    @classmethod
    def of(cls, texts: Sequence[Chains]) -> Reliability:
        """Fit on every other text, measure on the rest.

        A UsageError says that there are too few texts, no drafts, or scores outside of 0 to 1.
        """
        depth = min((text.depth for text in texts), default=0)
        require(len(texts), bool(depth))
        fit, (held, survived) = _stacked(texts[::2], depth), _stacked(texts[1::2], depth)
        if any(each.min() < 0.0 or each.max() > 1.0 for each in (fit[0], held)):
            raise UsageError("the recorded confidences are not probabilities", "Record them again.")
        temperatures = fit_temperatures(*fit)
        return cls(temperatures, survivals(held), survivals(held, temperatures), survived)

    def as_text(self) -> str:
        """Figures by position, before and after."""
        parts = [
            ([str(k + 1), f"{temperature:.2f}"], slice(k, k + 1))
            for k, temperature in enumerate(self.temperatures)
        ]
        rows = []
        for name, part in [*parts, (["all", ""], slice(None))]:
            figures = [
                f"{figure(chances[:, part].ravel(), self.survived[:, part].ravel()):.3f}"
                for figure in (calibration_error, brier_score, auc)
                for chances in (self.before, self.after)
            ]
            rows.append(name + figures)
        figures = ["error", "after", "Brier", "after", "AUC", "after"]
        return text_table(["position", "temperature", *figures], rows)

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """The reliability diagram of the first position, before and after scaling.

        Bins of only a few tokens are left out, because their shares are accidents.
        """
        chances = {"before": self.before, "after": self.after}
        curves = {}
        for name, each in chances.items():
            found = bins(each[:, 0], self.survived[:, 0])
            enough = [(x, y) for x, y, size in found if size >= _FEW]
            curves[name] = enough or [(x, y) for x, y, _ in found]
        return curves

    def chart(self) -> Markup:
        """The reliability diagram as SVG."""
        lines = [Line(name, points) for name, points in self.curves().items()]
        x, y = (Axis(name, 0, 1, SHARES) for name in ("predicted", "accepted"))
        title = "Predicted confidence and the share that was accepted"
        return chart(title, x, y, lines, diagonal=True)


def require(texts: int, has_drafts: bool) -> None:
    """Refuse with a UsageError what tells nothing about a draft."""
    if texts < 2:
        raise UsageError(
            f"calibration takes two texts or more, not {texts}",
            "Add one: half of them are to fit, the others to measure.",
        )
    if not has_drafts:
        raise UsageError("nothing is drafted in these texts", "Use a draft model: -d.")


def _stacked(texts: Sequence[Chains], depth: int) -> tuple[Floats, Bools]:
    confidence = np.concatenate([text.confidence[:, :depth] for text in texts])
    survived = np.concatenate([text.survived[:, :depth] for text in texts])
    return confidence.astype(np.float64), survived
