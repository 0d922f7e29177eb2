"""By what complete trials are ranked: `hydra.sweeper.objective`.

Only the ranking changes, and with it the winner and who is trained again. Sampler and pruner go on by the
NLL, which tells two settings apart with far fewer questions than right and wrong answers do.
"""

from collections.abc import Sequence
from typing import Literal, get_args

from vqa.results.calibration import cross_fitted
from vqa.results.metrics import per_question_nll
from vqa.results.predictions import Prediction

Objective = Literal["nll", "accuracy", "calibrated_nll"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


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
