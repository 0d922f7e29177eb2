"""How every run ends: metrics, predictions and submission are written, and the manifest comes last."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vqa.machine.files import replace_text
from vqa.results.folder import RunFolder
from vqa.results.manifest import Provenance, write_manifest
from vqa.results.predictions import Prediction, write_predictions, write_submission


@dataclass(frozen=True)
class Results:
    """What a run found out.

    Args:
        metrics: The content of metrics.json.
        predictions: The rows of each predictions file, by the file's path; at least one row each.
        submitted: Ids of the test questions as their file gives them; None writes no submission.csv.
        as_sample: The submission once more, as the contest's sample has it; None where no sample is given.
    """

    metrics: Mapping[str, Any]
    predictions: Mapping[Path, Sequence[Prediction]] = field(default_factory=dict)
    submitted: Sequence[str] | None = None
    as_sample: str | None = None


def finish_run(
    run: RunFolder,
    results: Results,
    provenance: Provenance,
    show: Callable[[], object] | None = None,
) -> None:
    """Write what a run found out, each file complete or not at all; the manifest last.

    Args:
        run: The run's folder.
        results: What to write.
        provenance: What made the run, for the manifest.
        show: Called between results and manifest: draws them, copies them to where the run is tracked.

    Raises:
        UserError: A test question has no answer to submit.
        ValueError: A predictions file would be empty.
    """
    replace_text(run.metrics_file, json.dumps(results.metrics, indent=2, ensure_ascii=False) + "\n")
    for path, predictions in results.predictions.items():
        write_predictions(path, predictions)
    if results.submitted is not None:
        write_submission(run.submission, results.predictions[run.test_predictions], results.submitted)
        if results.as_sample is not None:
            replace_text(run.as_sample, results.as_sample)
    if show:
        show()
    run.checkpoint.unlink(missing_ok=True)
    write_manifest(run.manifest_file, provenance)
