"""Report the result of a training, as text and as a curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dspark_gguf.measure.charts import Axis, Line, bars, chart, save_chart, up_to

#: Tokens a pass below which no machine gains much: a block costs a tenth of a pass or more.
_WEAK = 1.2


def as_text(values: dict[str, Any], folder: Path) -> str:
    """The result of a training, from its manifest; draws the curve into its folder."""
    served, held = values["served"], values["held_out"]
    lines = [
        f"served: {served['tokens_a_pass']:.2f} tokens a pass on held-out prompts "
        f"({served['blocks']} blocks), {served['as_trained']:.2f} by the training code",
        "right guesses by position, where reached: "
        + " ".join(f"{share:.2f}" for share in held["right"]),
        _confidence(values.get("confidence")),
    ]
    if served["tokens_a_pass"] < _WEAK:
        lines.append("so few guesses are right that this draft hardly pays: give it more --hours")
    seconds = ", ".join(f"{name} {spent / 60:.1f} min" for name, spent in values["spent"].items())
    lines.append(seconds)
    if curve := values["curve"]:
        lines.append("tokens a pass on held-out conversations, by minutes of training:")
        shown = curve[:: max(1, len(curve) // 12)]
        lines.append(bars({f"{at / 60:.0f}": value for at, value in shown}))
        path = folder / "curve.svg"
        save_chart(path, _chart(curve))
        lines.append(f"the whole curve: {path}")
    return "\n".join(lines)


def _confidence(ranking: dict[str, Any] | None) -> str:
    if ranking is None:
        return "no confidence head: too few held-out rows to judge one"
    written = ranking["head"] > ranking["own"]
    return (
        f"confidence: a head ranks {ranking['head']:.2f}, the best probability "
        f"{ranking['own']:.2f} (area under the curve): {'written' if written else 'left out'}; "
        "predicted and right: "
        + ", ".join(f"{said:.2f} {right:.2f}" for said, right in ranking["reliability"])
    )


def _chart(curve: list[list[float]]) -> Any:
    minutes = [(at / 60, value) for at, value in curve]
    most = max(value for _, value in minutes)
    ticks = [1 + k * 0.5 for k in range(int((most - 1) / 0.5) + 2)]
    up = Axis("tokens a pass", 1.0, max(ticks[-1], most), ticks)
    across = up_to("minutes of training", minutes[-1][0])
    return chart("tokens a pass on held-out conversations", across, up, [Line("draft", minutes)])
