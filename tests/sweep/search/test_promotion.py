"""Which trial goes on: rungs, promotion, the end of a study; and whole studies of the toy app."""

import io
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from rich.console import Console

from tests.helpers.toy_app.harness import board_rows, outcome, run_toy, run_toy_cut_off, starts, trials_of
from vqa.sweep.board import Board, describe_end
from vqa.sweep.leaderboard import leaderboard_text, ranking
from vqa.sweep.search.promotion import (
    PAUSED,
    UNTIL,
    WORKED_S,
    Climber,
    Extent,
    Piece,
    PromotionPruner,
    Rungs,
    is_paused,
    next_piece,
    pauses_of,
    work_of,
)

RUNGS = Rungs((1, 3, 9), factor=3, resume_every=3)
PROMOTE = ("hydra/sweeper/pruner=promote", "hydra/sweeper/sampler=thompson", "hydra.sweeper.final=false")
State = Literal["paused", "running", "complete", "ended"]


def climber(
    number: int,
    *reports: float,
    state: State = "paused",
    until: int | None = None,
    pauses: tuple[int, ...] = (),
) -> Climber:
    steps = dict(enumerate(reports, 1))
    return Climber(number, steps, until if until is not None else max(steps), state, pauses)


def paused_at_1(values: Sequence[float]) -> list[Climber]:
    return [climber(number, value) for number, value in enumerate(values)]


def test_rungs_lie_a_factor_apart_and_end_with_the_whole_trial() -> None:
    pruner = PromotionPruner(1, 3, last_rung=9, resume_every=3, least_complete=3, random_share=0.25)
    assert pruner.rungs.steps == (1, 3, 9)
    pruner = PromotionPruner(1, 3, last_rung=15, resume_every=3, least_complete=3, random_share=0.25)
    assert pruner.rungs.steps == (1, 3, 9, 15)
    assert PromotionPruner(1, 3, 1, 1, 3, 0.0).rungs.steps == (1,)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"first_rung": 0}, "first_rung must be from 1 to last_rung=9, got 0"),
        ({"first_rung": 10}, "first_rung must be from 1 to last_rung=9, got 10"),
        ({"reduction_factor": 1}, "reduction_factor must be >= 2, got 1"),
        ({"resume_every": 0}, "resume_every must be >= 1, got 0"),
        ({"least_complete": 0}, "least_complete must be >= 1, got 0"),
        ({"random_share": 1.5}, r"random_share must be from 0 to 1, got 1\.5"),
        ({"random_early": -1.0}, r"random_early must be >= 0, got -1\.0"),
    ],
)
def test_numbers_out_of_range_are_refused(changed: dict[str, float], message: str) -> None:
    right = {"first_rung": 1, "reduction_factor": 3, "last_rung": 9, "resume_every": 3}
    with pytest.raises(ValueError, match=message):
        PromotionPruner(**{**right, "least_complete": 3, "random_share": 0.25, **changed})  # type: ignore[arg-type]


def test_a_fold_that_was_begun_is_computed_again_after_a_pause() -> None:
    assert climber(0, 0.5, pauses=(1,)).work(resume_every=3) == 1
    assert climber(0, 0.5, until=3, pauses=(1,)).work(resume_every=3) == 4
    assert climber(0, 0.5, until=9, pauses=(1, 3)).work(resume_every=3) == 10  # a whole fold survives
    assert climber(0, 0.5, until=9).work(resume_every=3) == 9  # it went on at once
    assert work_of([climber(0, 0.5), climber(1, 0.5, until=9, pauses=(1,))], RUNGS) == pytest.approx(11 / 9)


def test_early_trials_are_drawn_at_random_more_often() -> None:
    pruner = PromotionPruner(1, 3, 9, 3, 3, random_share=0.1, random_early=3)
    assert [pruner.random_share_of(number) for number in (0, 2, 5, 99)] == [1.0, 1.0, 0.5, 0.1]


def test_the_first_trials_all_start_then_the_best_third_goes_on() -> None:
    extent = Extent(n_trials=9, least_complete=1)
    assert next_piece(paused_at_1([0.5, 0.7]), RUNGS, extent) == Piece(None, 1)
    assert next_piece(paused_at_1([0.5, 0.7, 0.6]), RUNGS, extent) == Piece(0, 3)


def test_the_trial_at_hand_goes_on_first_of_those_that_deserve_it() -> None:
    climbers = paused_at_1([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    extent = Extent(n_trials=9, least_complete=1)
    assert next_piece(climbers, RUNGS, extent) == Piece(0, 3)
    assert next_piece(climbers, RUNGS, extent, at_hand=1) == Piece(1, 3)
    assert next_piece(climbers, RUNGS, extent, at_hand=2) == Piece(0, 3)  # it is not among the best third


def test_a_large_objective_is_good_where_it_is_maximised() -> None:
    extent = Extent(n_trials=9, least_complete=1)
    assert next_piece(paused_at_1([0.5, 0.7, 0.6]), RUNGS, extent, sign=-1.0) == Piece(1, 3)


def test_the_highest_rung_is_promoted_first() -> None:
    climbers = [climber(n, 0.5, 0.5, 0.4 + n / 100) for n in range(3)] + paused_at_1([0.3] * 6)[3:]
    assert next_piece(climbers, RUNGS, Extent(20, 1)) == Piece(0, 9)


def test_promoted_trials_count_at_the_rungs_below() -> None:
    climbers = [climber(0, 0.1, state="running", until=3), *paused_at_1([0.0, 0.5, 0.6])[1:]]
    # of three at the first rung one goes on, and trial 0 has done so
    assert next_piece(climbers, RUNGS, Extent(20, 1)) == Piece(None, 1)


def test_a_failed_trial_counts_but_never_goes_on() -> None:
    climbers = [climber(0, 0.1, state="ended"), *paused_at_1([0.0, 0.5, 0.6])[1:]]
    assert next_piece(climbers, RUNGS, Extent(20, 1)) == Piece(None, 1)


def test_when_nothing_is_left_to_start_the_best_goes_on_until_enough_are_complete() -> None:
    climbers = paused_at_1([0.5, 0.7])
    assert next_piece(climbers, RUNGS, Extent(2, 1)) == Piece(0, 3)
    complete = [climber(0, 0.5, state="complete", until=9), climber(1, 0.7)]
    assert next_piece(complete, RUNGS, Extent(2, 1)) is None
    assert next_piece(complete, RUNGS, Extent(2, 2)) == Piece(1, 3)


def test_a_given_work_is_done_instead() -> None:
    complete = [climber(0, 0.5, state="complete", until=9, pauses=(1,)), climber(1, 0.7)]  # 11 reports
    assert next_piece(complete, RUNGS, Extent(2, 1, whole_trials=20 / 9)) == Piece(1, 3)


def test_towards_the_end_of_a_given_work_only_what_can_be_completed_goes_on() -> None:
    complete = [climber(0, 0.5, state="complete", until=9, pauses=(1,)), climber(1, 0.7)]  # 11 reports
    assert next_piece(complete, RUNGS, Extent(2, 1, whole_trials=19.9 / 9)) is None
    at_hand = next_piece(complete, RUNGS, Extent(2, 1, whole_trials=19.9 / 9), at_hand=1)
    assert at_hand == Piece(1, 3)  # it would repeat nothing: eight reports are enough
    assert next_piece(complete, RUNGS, Extent(9, 1, whole_trials=19.9 / 9)) is None
    assert next_piece(complete, RUNGS, Extent(9, 1, whole_trials=20 / 9)) == Piece(None, 1)


def test_a_study_without_a_complete_trial_goes_on_past_its_work() -> None:
    assert next_piece(paused_at_1([0.5, 0.7]), RUNGS, Extent(9, 1, whole_trials=0.1)) == Piece(0, 3)


def test_nothing_is_left_while_the_last_trials_run() -> None:
    running = [climber(0, 0.5, state="running", until=9)]
    assert next_piece(running, RUNGS, Extent(1, 1)) is None


def test_a_trial_is_paused_once_that_is_written_down_for_its_rung() -> None:
    def trial(state: TrialState, until: int | None, pauses: list[int]) -> optuna.trial.FrozenTrial:
        attributes = {PAUSED: pauses} | ({} if until is None else {UNTIL: until})
        return create_trial(state=state, intermediate_values={1: 0.5}, user_attrs=attributes)

    assert is_paused(trial(TrialState.RUNNING, 3, [1, 3]))
    assert not is_paused(trial(TrialState.RUNNING, 3, [1]))
    assert not is_paused(trial(TrialState.RUNNING, 1, []))  # it may go on at once: nobody has been asked yet
    assert not is_paused(trial(TrialState.RUNNING, None, []))
    assert not is_paused(trial(TrialState.PRUNED, 3, [3]))


@pytest.fixture(scope="module")
def promoted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole study of the toy app."""
    folder = tmp_path_factory.mktemp("promoted")
    run_toy(folder, *PROMOTE)
    return folder


def test_a_study_starts_all_trials_and_runs_the_best_to_their_end(promoted: Path) -> None:
    states = [row["state"] for row in board_rows(promoted)]
    assert states.count("COMPLETE") == 2
    assert states.count("PRUNED") == 6
    assert all(trial.state.is_finished() for trial in trials_of(promoted))
    begun = starts(promoted)
    assert set(begun) == {f"{number:03d}" for number in range(8)}
    assert len(begun) > 8  # some were taken up again
    assert not all(1 in pauses_of(trial) for trial in trials_of(promoted))  # some went on at once


def test_a_promoted_trial_scores_as_one_that_was_never_paused(promoted: Path, tmp_path: Path) -> None:
    best = board_rows(promoted)[0]
    given = ", ".join(f"{key}: {best[key]}" for key in ("lr", "lora.r", "image"))
    run_toy(
        tmp_path,
        "hydra/sweeper/pruner=none",
        "hydra.sweeper.final=false",
        "hydra.sweeper.n_trials=1",
        f"hydra.sweeper.enqueue=[{{{given}}}]",
    )
    alone = board_rows(tmp_path)[0]
    assert [alone[key] for key in ("nll", "nll_se", "accuracy")] == [
        best[key] for key in ("nll", "nll_se", "accuracy")
    ]


def test_a_study_that_was_killed_anywhere_ends_as_one_that_was_not(promoted: Path, tmp_path: Path) -> None:
    for after_s in (0.5, 0.8, 1.1):  # a slow machine may not come to its first trial in the shortest of them
        run_toy_cut_off(tmp_path, after_s, signal.SIGKILL, *PROMOTE, "pause_s=0.01")
    run_toy(tmp_path, *PROMOTE, "pause_s=0.01")
    assert outcome(tmp_path) == outcome(promoted)


def test_a_study_stops_where_its_work_is_done_and_goes_on_with_more(tmp_path: Path) -> None:
    run_toy(tmp_path, *PROMOTE, "hydra.sweeper.whole_trials=0.5")
    first = board_rows(tmp_path)
    assert len(first) < 8
    assert first[0]["state"] == "COMPLETE"  # without one there is no winner
    run_toy(tmp_path, *PROMOTE)
    assert len(board_rows(tmp_path)) == 8


def test_paused_trials_are_shown_as_what_they_are(tmp_path: Path) -> None:
    waiting = create_trial(
        state=TrialState.RUNNING,
        params={"lr": 1e-3},
        distributions={"lr": optuna.distributions.FloatDistribution(1e-4, 1e-2)},
        intermediate_values={1: 0.5},
        user_attrs={UNTIL: 1, PAUSED: [1], WORKED_S: 2.5},
    )
    waiting.number = 0
    standings = ranking([waiting], tmp_path, "minimize")
    assert leaderboard_text(standings, ["lr"]).splitlines()[1].startswith("0,PAUSED,0,0.500000,,,,2.50,0.001")
    assert describe_end(standings[0]) == "trial 0 paused at step 1: NLL 0.5000, 2.5 s"
    console = Console(width=120, record=True, file=io.StringIO())
    board = Board("mine", ["lr"], 3, console)
    board.show(standings)
    console.print(board.picture())
    title, *table = console.export_text().splitlines()
    assert "study mine: 0 of 3 trials, 1 paused" in title
    assert any("paused at 1" in line for line in table)
