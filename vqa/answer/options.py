"""Settings that do not suit the questions' numbers of options, refused before a model is loaded."""

from collections.abc import Sequence

from vqa.config.settings import Settings
from vqa.errors import UserError, require
from vqa.model.prompt import refuse_other_options
from vqa.question import Question, by_options

FEWEST_ALIKE = 20  # questions of one number of options from which a prior over their letters is estimated


def refuse_options(
    settings: Settings, answered: Sequence[Sequence[Question]], trained: Sequence[Question] = ()
) -> None:
    """Refuse prompts, priors and test-time methods that do not suit the numbers of options.

    A prior over letters is estimated among questions with as many options. A test-time method takes the
    questions of a batch together, so all need as many.

    Args:
        settings: Of the run.
        answered: Lists of questions that are each answered by themselves; empty ones do not matter.
        trained: Questions that are trained on.

    Raises:
        UserError: Says which setting, which number of options, and what to do.
    """
    everything = [question for part in (*answered, trained) for question in part]
    refuse_other_options(settings.prompt, everything)
    numbers = by_options(len(question.choices) for question in everything)
    if len(numbers) < 2:
        return
    said = " and ".join(str(n) for n in numbers)
    method = settings.adapt.method
    require(
        method == "none",
        "adapt.method",
        f"none where questions have unlike numbers of options ({said})",
        method,
    )
    inference = settings.inference
    prior = {"inference.calibration=batch": inference.calibration == "batch"}
    prior |= {"inference.debias=pride": inference.debias == "pride"}
    for key in [key for key, wanted in prior.items() if wanted]:
        for part in answered:
            groups = by_options(len(question.choices) for question in part)
            n, rows = min(groups.items(), key=lambda item: len(item[1]), default=(0, []))
            if len(groups) > 1 and len(rows) < FEWEST_ALIKE:
                raise UserError(
                    f"{key} estimates a prior for each number of options from at least "
                    f"{FEWEST_ALIKE} questions, but {len(rows)} of {len(part)} questions have {n} options: "
                    "use inference=cyclic or letters"
                )
