"""A study's terms: what must stay the same, and how a difference is told."""

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.studies import settings
from vqa.errors import UserError
from vqa.sweep.search.space import read_search_space
from vqa.sweep.study import read_terms, refuse_other_terms, study_terms, terms_text


def terms(*arguments: str, **changed: Any) -> dict[str, Any]:
    return study_terms(settings(**changed), read_search_space({"lr": "interval(0.0, 1.0)"}, arguments))


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        (["study=lora"], {}),
        (["tracking=none"], {}),
        (["env=kaggle", "env.threads=2", "++tracking.uri=x"], {}),
        (["lang=ko"], {}),
        (["model.license=other", "winner=none"], {}),
        (["data.sample_submission=sample.csv"], {}),
        (["budget.micro_batch_size=2", "++budget.max_memory_gib=8", "budget.eval_batch_size=4"], {}),
        (["budget.checkpoint_steps=5", "image.cache_gib=0"], {}),
        ([], {"n_trials": 99, "n_workers": 4, "timeout_s": 5, "max_failures": 7, "final": True}),
    ],
)
def test_where_and_how_long_it_runs_does_not_matter(arguments: list[str], changed: dict[str, Any]) -> None:
    refuse_other_terms("s", terms(), terms(*arguments, **changed))


def test_the_order_of_overrides_does_not_matter() -> None:
    refuse_other_terms("s", terms("a=1", "b=2"), terms("b=2", "a=1"))


@pytest.mark.parametrize(
    ("arguments", "changed", "message"),
    [
        (["lr=0,1"], {}, r"space lr: FloatDistribution\(.*\) before, CategoricalDistribution"),
        (["r=1,2"], {}, r"space r: nothing before, CategoricalDistribution"),
        (["model=big"], {}, "fixed: nothing before, model=big now"),
        (["studying=1"], {}, "fixed: nothing before, studying=1 now"),
        (["language=ko"], {}, "fixed: nothing before, language=ko now"),
        (["budget=smoke"], {}, "fixed: nothing before, budget=smoke now"),
        (["budget.batch_size=4"], {}, "fixed: nothing before, budget.batch_size=4 now"),
        ([], {"seed": 1}, "seed: 0 before, 1 now"),
        ([], {"direction": "maximize"}, "direction: minimize before, maximize now"),
        (
            [],
            {"pruner": {"_target_": "optuna.pruners.NopPruner"}},
            "pruner min_resource: 1 before, nothing now",
        ),
    ],
)
def test_each_difference_is_named(arguments: list[str], changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"study 's'(?s:.*)  {message}(?s:.*)study=other"):
        refuse_other_terms("s", terms(), terms(*arguments, **changed))


def test_terms_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    assert read_terms(path) is None
    path.write_text(terms_text(terms("model=big")))
    assert read_terms(path) == terms("model=big")


def test_a_spoiled_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("- a\n")
    with pytest.raises(UserError, match=r"study.yaml must be a mapping"):
        read_terms(tmp_path / "study.yaml")
