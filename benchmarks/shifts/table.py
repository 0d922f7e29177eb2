"""The table over the shifts, from the answers of every cell: gains with intervals, tests and costs.

Notation: S seeds of training, Q questions.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.harness.cells import Result
from benchmarks.harness.paired import Table, holm, interval, sign_flip_p_value
from benchmarks.shifts.rows import CLEAN

FROZEN = "frozen"
SHIFTED = "mean of shifts"  # the row over all of a dataset's shifts, clean pictures left out
LEVEL = 0.05
Key = tuple[str, str, str]  # dataset, shift, method


def compared(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row per dataset, shift and method, and per dataset and method one over its shifts.

    A difference from frozen is tested by flipping signs of the questions' differences, each the mean over the
    seeds; in the row over the shifts a question's corruptions are flipped together. p values are corrected
    (Holm) over all rows but frozen's.

    Args:
        results: Of the cells; only seeds that a method and frozen both have count.
    """
    right, cost = _by_key(results), _costs(results)
    rows = [_row(key, right[key], right[(*key[:2], FROZEN)]) | cost[key] for key in right if _has(right, key)]
    pairs = dict.fromkeys((dataset, method) for dataset, _, method in right)
    rows += [row for dataset, method in pairs if (row := _over_shifts(right, dataset, method))]
    tested = [row for row in rows if row["method"] != FROZEN]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = p
    return rows


def _by_key(results: Iterable[Result]) -> dict[Key, dict[int, dict[str, float]]]:
    """Key to seed to question id to 1.0 (right) or 0.0."""
    found: dict[Key, dict[int, dict[str, float]]] = {}
    for r in results:
        right = dict(zip(r["ids"], map(float, r["right"]), strict=True))
        found.setdefault((r["dataset"], r["shift"], r["method"]), {})[r["seed"]] = right
    return found


def _costs(results: Sequence[Result]) -> dict[Key, dict[str, Any]]:
    found: dict[Key, dict[str, Any]] = {}
    for key in {(r["dataset"], r["shift"], r["method"]) for r in results}:
        mine = [r for r in results if (r["dataset"], r["shift"], r["method"]) == key]
        found[key] = {
            name: float(np.mean([r[name] for r in mine])) for name in ("seconds_per_row", "memory_mib", "nll")
        } | {"values": mine[0].get("values", "")}
    return found


def _has(right: dict[Key, dict[int, dict[str, float]]], key: Key) -> bool:
    frozen = right.get((*key[:2], FROZEN), {})
    return bool(frozen.keys() & right[key].keys())


def _tables(method: dict[int, dict[str, float]], frozen: dict[int, dict[str, float]]) -> tuple[Table, Table]:
    """(S, Q) right answers of both, over the seeds that both have, the questions in one order."""
    seeds = sorted(method.keys() & frozen.keys())
    ids = sorted(method[seeds[0]])
    return (
        np.array([[method[seed][name] for name in ids] for seed in seeds]),
        np.array([[frozen[seed][name] for name in ids] for seed in seeds]),
    )


def _row(
    key: Key, method: dict[int, dict[str, float]], frozen: dict[int, dict[str, float]]
) -> dict[str, Any]:
    mine, theirs = _tables(method, frozen)
    dataset, shift, name = key
    row = {"dataset": dataset, "shift": shift, "method": name, "seeds": len(mine), "n": mine.shape[1]}
    return row | _scores(mine, theirs)


def _scores(mine: Table, theirs: Table) -> dict[str, Any]:
    difference = mine - theirs
    return {
        "accuracy": float(mine.mean()),
        "ci95": list(interval(mine)),
        "gain": float(difference.mean()),
        "gain_ci95": list(interval(difference)),
        "gain_by_seed": difference.mean(1).tolist(),
        "p": sign_flip_p_value(difference.mean(0).tolist()),
    }


def _over_shifts(
    right: dict[Key, dict[int, dict[str, float]]], dataset: str, method: str
) -> dict[str, Any] | None:
    """Every question once, with what it adds to the mean over the shifts; each shift weighs the same."""
    keys = [key for key in right if key[0] == dataset and key[2] == method and key[1] != CLEAN]
    keys = [key for key in keys if _has(right, key)]
    if not keys:
        return None
    cells = [(right[key], right[(*key[:2], FROZEN)]) for key in keys]
    seeds = set.intersection(*(set(cell) for pair in cells for cell in pair))
    if not seeds:
        return None
    sums: list[dict[int, dict[str, float]]] = [{}, {}]  # of the method, of frozen: shares of the whole mean
    for pair in cells:
        for total, cell in zip(sums, pair, strict=True):
            for seed in seeds:
                answers = cell[seed]
                shares = total.setdefault(seed, {})
                for name, value in answers.items():
                    shares[name] = shares.get(name, 0.0) + value / len(answers) / len(keys)
    mine, theirs = _tables(*sums)
    whole = mine.shape[1]  # a sum of shares: times Q, the mean over questions is the mean over shifts
    row = {"dataset": dataset, "shift": SHIFTED, "method": method, "seeds": len(mine), "n": whole}
    return row | {"shifts": len(keys)} | _scores(mine * whole, theirs * whole)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The tables: gains in points by method and shift, bold where significant; then intervals and costs."""
    texts = []
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        mine = [row for row in rows if row["dataset"] == dataset]
        texts.append(f"**{dataset}**: " + _caption(mine) + "\n\n" + _gains(mine) + _values(mine))
    return "\n\n".join(texts)


def _caption(rows: Sequence[dict[str, Any]]) -> str:
    seeds, n = max(row["seeds"] for row in rows), max(r["n"] for r in rows if r["shift"] != SHIFTED)
    return (
        f"accuracy of `frozen` and the others' gains over it in points, with 95 % intervals; {n} questions a "
        f"cell, {seeds} seeds; bold: p < {LEVEL} after Holm's correction; peak: memory beside the model"
    )


def _gains(rows: Sequence[dict[str, Any]]) -> str:
    shifts = list(dict.fromkeys(row["shift"] for row in rows))
    methods = sorted({row["method"] for row in rows}, key=lambda name: (name != FROZEN, name))
    lines = ["| method | " + " | ".join(shifts) + " | ms/row | peak MiB |", "|---" * (len(shifts) + 3) + "|"]
    for method in methods:
        found = {row["shift"]: row for row in rows if row["method"] == method}
        cells = [_cell(found[shift]) if shift in found else "" for shift in shifts]
        costs = [row for row in found.values() if "seconds_per_row" in row]
        ms = 1000 * float(np.mean([row["seconds_per_row"] for row in costs]))
        peak = max(row["memory_mib"] for row in costs)
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {ms:.1f} | {peak:.0f} |")
    return "\n".join(lines)


def _values(rows: Sequence[dict[str, Any]]) -> str:
    """The values that each method ran with; "" for results of an earlier version, which do not say."""
    told = {row["method"]: row["values"] for row in rows if row.get("values")}
    if not told:
        return ""
    lines = ["\n", "| method | values |", "|---|---|"]
    return "\n".join(lines + [f"| {method} | {values} |" for method, values in sorted(told.items())])


def _cell(row: dict[str, Any]) -> str:
    if row["method"] == FROZEN:
        low, high = row["ci95"]
        return f"{100 * row['accuracy']:.1f} ({100 * low:.1f}-{100 * high:.1f})"
    low, high = row["gain_ci95"]
    gain = f"{100 * row['gain']:+.1f}"
    bold = f"**{gain}**" if row["p_holm"] < LEVEL else gain
    return f"{bold} ({100 * low:+.1f} to {100 * high:+.1f})"
