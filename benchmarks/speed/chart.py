"""Draws docs/speed.png, the README's chart, from results of throughput, peers and answering.

python -m benchmarks.speed.chart
"""

import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

RESULTS = Path(__file__).parents[1] / "results"
CHART = Path(__file__).parents[2] / "docs" / "speed.png"
RUN = "2026-11-25-h100"  # the newest in which every tool ran, on cards of one host
ANSWERING = "2026-11-28-h100"  # vqa and generate(), on one card
MODEL = "qwen3_vl_8b"
NAMES = {
    "vqa": "vqa",
    "unsloth": "Unsloth",
    "trl_liger": "TRL + Liger",
    "trl": "TRL",
    "transformers": "plain",
}
CARDS = ((76, "80 GB card"), (24, "24 GB card"))


def rows_of(run: str, name: str) -> list[dict[str, Any]]:
    """Rows of that result, 16-bit base, that have a speed."""
    rows = json.loads((RESULTS / f"{run}-{name}.json").read_text(encoding="utf-8"))["rows"]
    return [r for r in rows if r.get("samples_s") and r["model"] == MODEL and r["base"] == "none"]


def best(rows: list[dict[str, Any]], who: str, mode: str, gib: float) -> float:
    """The tool's highest speed among the runs that fit; 0 when none was made."""
    speeds = [
        row["samples_s"]
        for row in rows
        if row["who"] == who and row["mode"] == mode and row.get("peak_gib", gib) <= gib
    ]
    return max(speeds, default=0.0)


def draw_bars(axes: Axes, title: str, values: dict[str, float], than: str = "vqa") -> None:
    """One horizontal bar per tool, beside it its figure and how much slower it is than one of ours."""
    names = [name for name, value in values.items() if value]
    for place, name in enumerate(names):
        value = values[name]
        ours = name.startswith("vqa")
        axes.barh(place, value, color="#2a6f97" if ours else "#a9b4be")
        factor = "" if ours else f"   {values[than] / value:.1f}x slower"
        axes.text(value, place, f" {value:.1f}{factor}", va="center", fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, max(values.values()) * 1.15)
    axes.set_title(title, fontsize=10, loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def main() -> None:
    """Read the results and write the chart."""
    rows = rows_of(RUN, "throughput") + rows_of(RUN, "peers")
    figure = Figure(figsize=(10, 4.6), layout="constrained", dpi=110)
    panels = figure.subplots(1, 3)
    for axes, (gib, card) in zip(panels, CARDS, strict=False):
        values = {label: best(rows, who, "train", gib) for who, label in NAMES.items()}
        draw_bars(axes, f"LoRA training, {card}, questions/s", values)
    answering = rows_of(ANSWERING, "answering")
    first = "vqa, pictures\nseen for the first time"
    scoring = {
        "vqa, pictures known": best(answering, "vqa", "score", 24),
        first: best(answering, "vqa", "score, pictures new", 24),
        "generate()\nper row": best(answering, "generate", "score", 80),
    }
    draw_bars(panels[2], "answering, questions/s", scoring, than=first)
    figure.suptitle("Qwen3-VL-8B, 16-bit, r 32, 880-token prompt, 512 x 512, one H100", fontsize=11)
    figure.savefig(CHART)


if __name__ == "__main__":
    main()
