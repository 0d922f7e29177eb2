"""The runs that are asked of the grid's configurations."""

from benchmarks.search.finals import cells_of

POINTS = [
    {"params": {"optimizer.lr": lr, "lora.r": r, "lora.lora_alpha": 16}, "per_fold": [90] * 5}
    for lr in (1e-3, 2e-3)
    for r in (8, 32)
]


def test_a_part_of_the_runs_is_a_table() -> None:
    cells = cells_of(POINTS, seeds=1, trial_seeds=2)
    assert [(c["kind"], c["train_seed"]) for c in cells[::4]] == [("final", 0), ("trial", 1), ("trial", 2)]
    assert len(cells) == 12
    assert cells[0]["lora.r"] == 32


def test_final_runs_alone_unless_trials_are_asked_for() -> None:
    assert {c["kind"] for c in cells_of(POINTS, seeds=2, trial_seeds=0)} == {"final"}
