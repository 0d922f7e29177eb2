"""The one table of stages: what `stage=` may be, who does it, and what it is for.

The functions are named, not imported: the table is read before torch and transformers are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from vqa.config import settings


@dataclass(frozen=True)
class Stage:
    """One stage.

    Args:
        function: "module:function"; it is called with the settings and the run's folder.
        purpose: What it is for, in one line.
        claims: Whether it writes results into a folder of its own; the others only read, and may be repeated.
    """

    function: str
    purpose: str
    claims: bool = True

    def load(self) -> Callable[..., Any]:
        """Import the function; that of a stage with a model takes seconds."""
        module, _, name = self.function.partition(":")
        loaded: Callable[..., Any] = getattr(import_module(module), name)
        return loaded


STAGES: dict[settings.Stage, Stage] = {
    "final": Stage(
        "vqa.stages.final:run_final", "train with the study's winner or these values, then submission.csv"
    ),
    "trial": Stage("vqa.stages.trial:run_trial", "one short trial; a sweep starts these"),
    "predict": Stage("vqa.stages.predict:run_predict", "an adapter + unlabelled questions -> submission.csv"),
    "evaluate": Stage("vqa.stages.predict:run_evaluate", "base and adapter on labelled questions"),
    "doctor": Stage(
        "vqa.stages.doctor:run_doctor",
        "check configuration, data, cache, device, disk; load nothing big",
        claims=False,
    ),
    "status": Stage("vqa.stages.status:run_status", "where a sweep stands; touches nothing", claims=False),
    "report": Stage("vqa.stages.report:run_report", "rebuild multirun/<study>/report.html", claims=False),
    "merge": Stage("vqa.stages.merge:run_merge", "bf16 weights with the adapter in them"),
    "serve": Stage(
        "vqa.stages.serve:run_serve", "a page on this machine: picture, question, options", claims=False
    ),
    "ensemble": Stage("vqa.stages.ensemble:run_ensemble", "average the answers of several runs"),
    "compare": Stage(
        "vqa.stages.compare:run_compare", "two studies on the held-out questions of both", claims=False
    ),
}


def stages_text() -> str:
    """The stages for `--help`: a line each."""
    width = max(map(len, STAGES))
    return "\n".join(f"  {name:{width}}  {stage.purpose}" for name, stage in STAGES.items())
