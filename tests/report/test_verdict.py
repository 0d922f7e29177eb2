"""The result of a study in one sentence."""

import math

from vqa.report.verdict import verdict
from vqa.results.trials import TrialRow


def trial(number: int, nll: float, tied: bool, accuracy: float = 0.5, rank: int = 0) -> TrialRow:
    return TrialRow(number, "COMPLETE", 3, nll, 0.1, accuracy, 0.1, 1.0, {}, tied, rank)


METRICS = {"accuracy": 0.8, "base_accuracy": 0.24}


def test_it_says_how_good_against_what_and_which_settings_tie() -> None:
    trials = [trial(i, 0.5 + i, tied=i < 5) for i in range(8)]
    english, korean = verdict(METRICS, trials, "submission.csv")
    assert english == ("tuned 80 %, base 24 %, chance 25 %; the best 5 settings tie; next: submission.csv.")
    assert "학습 후 80 %" in korean
    assert "5개가 동률" in korean


def test_without_a_final_run_the_best_trial_speaks() -> None:
    trials = [trial(0, 0.5, tied=True, accuracy=0.6), trial(1, 0.9, tied=False)]
    english, _ = verdict({}, trials, chance=0.25)
    assert english == "best short trial 60 %, chance 25 %; one setting is clearly the best."


def test_the_winner_is_the_first_of_the_leaderboard_and_not_the_luckiest() -> None:
    # once some were trained again, one that was not may have a lower NLL and stand behind them
    trials = [trial(3, 0.6, tied=True, accuracy=0.7), trial(1, 0.5, tied=True, accuracy=0.8, rank=1)]
    assert verdict({}, trials)[0].startswith("best short trial 70 %")


def test_without_any_score_there_is_no_verdict() -> None:
    assert verdict({}, [], "submission.csv") == ("", "")
    assert "NLL 0.500" in verdict({}, [trial(0, 0.5, tied=True, accuracy=math.nan)])[0]


def test_two_settings_that_tie_are_both() -> None:
    trials = [trial(0, 0.5, tied=True), trial(1, 0.6, tied=True)]
    assert "both settings tie" in verdict({}, trials)[0]
    assert "두 설정이 동률" in verdict({}, trials)[1]
