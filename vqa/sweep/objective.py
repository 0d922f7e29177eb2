"""By what complete trials are ranked: `hydra.sweeper.objective`.

Only the ranking changes, and with it the winner and who is trained again. Sampler and pruner go on by the
NLL, which tells two settings apart with far fewer questions than right and wrong answers do.

Costs may stand beside it: `hydra.sweeper.objective=[nll,seconds]`. The leaderboard then marks the Pareto
front of the complete trials. The search stays one for a low NLL, and is no multi-objective study of Optuna's:
such a study takes no reports, so that nothing could be pruned, paused or taken up again within a trial, and
its objectives are fixed when it is created, so that a finished study could not be asked about another cost.
The price: trials crowd where the NLL is low, and a cheap one that was pruned is not on the front.
"""

from collections.abc import Sequence
from typing import Literal, get_args

from vqa.results.calibration import cross_fitted
from vqa.results.metrics import per_question_nll
from vqa.results.predictions import Prediction

Objective = Literal["nll", "accuracy", "calibrated_nll"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
Cost = Literal["seconds", "parameters"]  # of a trial, per question scored; weights that were trained
COSTS: tuple[Cost, ...] = get_args(Cost)


def is_objective(value: object) -> bool:
    """Whether a value is a `hydra.sweeper.objective`: a word, or a list of a word and different costs."""
    first, *costs = value if isinstance(value, list) and value else [value]
    return first in OBJECTIVES and all(c in COSTS for c in costs) and len(set(costs)) == len(costs)


def question_losses(predictions: Sequence[Prediction], objective: Objective) -> dict[str, float]:
    """What each question adds to the loss that trials are ranked by, by id; lower is better.

    Args:
        predictions: Labelled, out of fold.
        objective: nll: -log p of the right letter, nats. calibrated_nll: the same after a temperature
            that was fitted without the question. accuracy: 1 for a wrong answer, 0 for a right one.

    Raises:
        ValueError: There are no predictions, or one has no gold letter.
    """
    if objective == "accuracy":
        return {p.id: float(p.answer != p.gold) for p in predictions}
    return per_question_nll(cross_fitted(predictions) if objective == "calibrated_nll" else predictions)


def shown_objective(loss: float, objective: Objective) -> float:
    """A mean loss as people read it: the share of right answers for accuracy, else nats."""
    return 1 - loss if objective == "accuracy" else loss
