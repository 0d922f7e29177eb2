"""Conditional parameters: a choice that opens others, for every kind of sampler."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from tests.helpers.studies import settings
from tests.helpers.toy_app.harness import board_rows, outcome, run_toy, trials_of
from vqa.errors import UserError
from vqa.results.folder import StudyFolder
from vqa.results.trials import read_leaderboard
from vqa.sweep.search.conditions import ImputingSampler, read_space
from vqa.sweep.search.proposals import Proposer
from vqa.sweep.search.sampling import SamplerFactory, draw, probe_sampler
from vqa.sweep.search.space import SearchSpace, read_enqueued
from vqa.sweep.study import refuse_other_terms, study_terms

PARAMS = {
    "adapt.lr": "tag(log, interval(1e-5, 1e-3))",  # before what it depends on
    "adapt": "choice(none, tent, views)",
    "adapt.views": "choice(2, 4)",
    "adapt.keep": "choice(0.1, 0.5)",
    "lr": "choice(1e-4, 1e-3)",
}
CONDITIONS = {
    "adapt.lr": {"adapt": ["tent"]},
    "adapt.views": {"adapt": "views"},
    "adapt.keep": {"adapt.views": 4},
}
SAMPLERS: dict[str, dict[str, Any]] = {
    "tpe": {"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 3},
    "gp": {"_target_": "optuna.samplers.GPSampler", "n_startup_trials": 3},
    "thompson": {"_target_": "vqa.sweep.search.thompson.ThompsonSampler", "n_startup_trials": 3},
    "random": {"_target_": "optuna.samplers.RandomSampler"},
    "brute_force": {"_target_": "optuna.samplers.BruteForceSampler"},
    "qmc": {"_target_": "optuna.samplers.QMCSampler"},
}


def space_of(*arguments: str, **changed: Any) -> SearchSpace:
    return read_space(settings(**{"params": PARAMS, "conditions": CONDITIONS, **changed}), arguments)


def steps(**changed: Any) -> SearchSpace:
    """The same space without its interval."""
    return space_of(params={**PARAMS, "adapt.lr": "choice(1e-4, 1e-3)"}, **changed)


def fits(space: SearchSpace, params: dict[str, Any]) -> bool:
    """Whether a trial has the names that apply, and no other."""
    return set(params) == set(space.applicable(params))


def study_of(node: dict[str, Any], space: SearchSpace, n_trials: int, seed: int = 0) -> list[dict[str, Any]]:
    study = optuna.create_study()
    samplers = SamplerFactory(node, seed, space)
    for number in range(n_trials):
        study.sampler = samplers.build(number)
        trial = study.ask()
        draw(trial, space)
        study.sampler = optuna.samplers.RandomSampler()
        study.tell(trial, {"none": 3.0, "tent": 1.0, "views": 2.0}[trial.params["adapt"]] + number / 100)
    return [trial.params for trial in study.trials]


def test_a_key_stands_behind_those_that_it_depends_on() -> None:
    assert space_of().keys == ["adapt", "adapt.lr", "adapt.views", "adapt.keep", "lr"]


def test_what_applies_follows_from_the_choices() -> None:
    space = space_of()
    assert space.applicable({"adapt": "none"}) == ["adapt", "lr"]
    assert space.applicable({"adapt": "tent"}) == ["adapt", "adapt.lr", "lr"]
    assert space.applicable({"adapt": "views", "adapt.views": 2}) == ["adapt", "adapt.views", "lr"]
    # a value that does not apply opens nothing
    assert space.applicable({"adapt": "none", "adapt.views": 4}) == ["adapt", "lr"]


def test_points_that_differ_only_in_what_does_not_apply_are_one() -> None:
    space = steps()
    points = list(space.points())
    assert len(points) == space.size() == 2 * (1 + 2 + (1 + 2))
    assert all(fits(space, point) for point in points)
    assert len({tuple(sorted(point.items())) for point in points}) == len(points)


def test_samples_have_every_key_and_every_choice_and_nothing_that_does_not_apply() -> None:
    space = space_of()
    samples = space.samples()
    assert all(fits(space, sample) for sample in samples)
    for name, ranged in space.distributions.items():
        found = {sample[name] for sample in samples if name in sample}
        assert found >= set(ranged.choices) if isinstance(ranged, CategoricalDistribution) else found


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws_what_applies_and_the_same_for_the_same_seed(sampler: str) -> None:
    space = steps() if sampler == "brute_force" else space_of()
    probe_sampler(SamplerFactory(SAMPLERS[sampler], 0, space), space)
    drawn = study_of(SAMPLERS[sampler], space, 8)
    assert all(fits(space, params) for params in drawn)
    assert drawn == study_of(SAMPLERS[sampler], space, 8)


@pytest.mark.extras
def test_botorch_draws_what_applies() -> None:
    node = {"_target_": "optuna_integration.BoTorchSampler", "n_startup_trials": 3}
    space = space_of()
    probe_sampler(SamplerFactory(node, 0, space), space)
    drawn = study_of(node, space, 6)
    assert all(fits(space, params) for params in drawn)
    assert len({params["adapt"] for params in drawn}) > 1
    assert drawn == study_of(node, space, 6)


def test_the_grid_visits_every_point_once_to_its_end() -> None:
    space = steps()
    node = {"_target_": "optuna.samplers.GridSampler", "_partial_": True}
    drawn = study_of(node, space, space.size())
    assert sorted(map(str, drawn)) == sorted(map(str, space.points()))


def test_tpe_draws_groups_together() -> None:
    built = SamplerFactory(SAMPLERS["tpe"], 0, space_of()).build(0)
    assert isinstance(built, optuna.samplers.TPESampler)
    assert built._group
    alone = SamplerFactory({**SAMPLERS["tpe"], "multivariate": False}, 0, space_of()).build(0)
    assert isinstance(alone, optuna.samplers.TPESampler)  # each by itself, as asked
    plain = SamplerFactory(SAMPLERS["tpe"], 0, SearchSpace({"lr": FloatDistribution(0, 1)}, ())).build(0)
    assert isinstance(plain, optuna.samplers.TPESampler)
    assert not plain._group


def test_a_process_sees_every_trial_and_goes_where_they_were_good() -> None:
    # Without imputing only the names that all trials share are modelled: here `adapt` and `lr`.
    ranged = FloatDistribution(0.0, 1.0)
    space = SearchSpace(
        {"kind": CategoricalDistribution(("off", "on")), "x": ranged}, (), {"x": {"kind": ("on",)}}
    )
    study = optuna.create_study()
    for x in (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95):
        params = {"kind": "on", "x": x}
        distributions = space.distributions
        study.add_trial(create_trial(params=params, distributions=distributions, value=abs(x - 0.8)))
    off = {"kind": space.distributions["kind"]}
    study.add_trial(create_trial(params={"kind": "off"}, distributions=off, value=1.0))
    found = []
    for number in range(8, 20):
        study.sampler = SamplerFactory(SAMPLERS["thompson"], 0, space).build(number)
        assert isinstance(study.sampler, ImputingSampler)
        trial = study.ask()
        draw(trial, space)
        if "x" in trial.params:
            found.append(trial.params["x"])
        study.tell(trial, state=TrialState.FAIL)
    assert len(found) >= 8
    assert sorted(abs(x - 0.8) for x in found)[len(found) // 2] < 0.15  # at random: about 0.3


@pytest.mark.parametrize("sampler", ["tpe", "thompson", "random"])
def test_a_search_that_promotes_tries_nothing_twice(sampler: str) -> None:
    space = steps()
    samplers = SamplerFactory(SAMPLERS[sampler], 0, space)
    proposer = Proposer(samplers, space, lambda number: 0.25, StudyDirection.MINIMIZE)
    trials: list[FrozenTrial] = []
    for number in range(space.size()):
        params = proposer.propose(number, trials)
        names = space.applicable(params)
        trials.append(
            create_trial(
                state=TrialState.RUNNING,
                params={name: params[name] for name in names},
                distributions={name: space.distributions[name] for name in names},
                intermediate_values={1: 1.0 + number / 10},
            )
        )
    assert len({tuple(sorted(trial.params.items())) for trial in trials}) == space.size()


@pytest.mark.parametrize("sampler", ["tpe", "random", "thompson"])
@pytest.mark.parametrize("drawn", [0, 1, 2])
def test_a_trial_cut_off_while_it_was_drawn_ends_up_the_same(sampler: str, drawn: int) -> None:
    space, samplers = space_of(), SamplerFactory(SAMPLERS[sampler], 3, space_of())

    def begun(names: int) -> optuna.study.Study:
        study = optuna.create_study()
        for number in range(6):
            study.sampler = samplers.build(number)
            trial = study.ask()
            draw(trial, space)
            study.sampler = optuna.samplers.RandomSampler()
            study.tell(trial, number % 3)
        study.sampler = samplers.build(6)
        cut_off = study.ask()
        for name in list(space.distributions)[:names]:
            if space.applies(name, cut_off.params):
                cut_off._suggest(name, space.distributions[name])
        study.sampler = samplers.build(6)  # another process adopts it
        draw(Trial(study, cut_off._trial_id), space)
        return study

    assert begun(drawn).trials[6].params == begun(len(space.distributions)).trials[6].params


def test_a_fixed_choice_decides_a_condition() -> None:
    assert space_of("adapt=tent").keys == ["adapt.lr", "lr"]
    assert space_of("adapt=tent").conditions == {}
    assert space_of("adapt=none").keys == ["lr"]  # adapt.keep depends on adapt.views, which is gone
    typed = space_of("adapt.views=2")  # holds for all trials; adapt.keep has no use for it
    assert typed.keys == ["adapt", "adapt.lr", "lr"]
    assert space_of(params={**PARAMS, "adapt.views": None, "adapt.keep": None}).keys == [
        "adapt",
        "adapt.lr",
        "lr",
    ]


def test_a_multiple_applies_where_its_other_number_does() -> None:
    params = {"lora": "choice(plain, dora)", "r": "choice(8, 16)", "alpha": "tag(times:r, choice(1, 2))"}
    space = space_of(params=params, conditions={"r": {"lora": "plain"}})
    assert space.applicable({"lora": "dora"}) == ["lora"]
    assert space.applicable({"lora": "plain"}) == ["lora", "r", "alpha / r"]
    assert space.values({"lora": "plain", "r": 16, "alpha / r": 2}) == {"lora": "plain", "r": 16, "alpha": 32}


@pytest.mark.parametrize(
    ("conditions", "arguments", "message"),
    [
        (
            {"adapt.view": {"adapt": "views"}},
            [],
            r"conditions.adapt.view names a key that is not searched \(did you mean adapt.views\?\)",
        ),
        (
            {"adapt.lr": {"adpat": "tent"}},
            [],
            r"adapt.lr.adpat names a key that is neither searched nor fixed \(did you mean adapt\?\)",
        ),
        (
            {"adapt.lr": {"adapt": ["tnet"]}},
            [],
            r"among the choices of adapt, got tnet \(did you mean tent\?\). Choices: none, tent, views",
        ),
        ({"lr": {"adapt.lr": [1e-4]}}, [], r"must name a key that is searched by choice\(...\)"),
        (
            {"adapt.views": {"adapt.keep": 0.1}, "adapt.keep": {"adapt.views": 4}},
            [],
            "must not go round in a circle, got one among adapt.views, adapt.keep",
        ),
        (
            {"adapt.views": {"adapt": "views"}, "adapt.keep": {"adapt": "tent", "adapt.views": 4}},
            [],
            r"conditions.adapt.keep can never hold: adapt in \[tent\] and adapt.views in \[4\]",
        ),
        (
            {name: {"adapt": "tent"} for name in ("adapt.lr", "adapt.views", "adapt.keep", "lr")},
            ["adapt=none"],
            "no searched key applies under the values that are fixed",
        ),
    ],
)
def test_a_condition_that_cannot_be_meant_is_refused(
    conditions: dict[str, Any], arguments: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        space_of(*arguments, conditions=conditions)


def test_first_configurations_lose_what_does_not_apply() -> None:
    entry = [{"adapt": "none", "adapt.views": 4, "lr": 1e-4}]
    with pytest.raises(UserError, match=r"enqueue\[0\] names adapt.views, which is not searched beside ada"):
        read_enqueued(entry, space_of())
    assert read_enqueued(entry, space_of(), leave_out=True) == []
    assert read_enqueued(entry, space_of("adapt=none")) == [{"lr": 1e-4}]
    assert read_enqueued([{"adapt.views": 4}], space_of()) == [{"adapt.views": 4}]


def test_conditions_are_terms_of_the_study_and_their_lack_is_none() -> None:
    plain = SearchSpace({"lr": FloatDistribution(0, 1)}, ())
    assert "conditions" not in study_terms(settings(), plain)
    before = study_terms(settings(), space_of())
    now = study_terms(settings(), space_of(conditions={"adapt.lr": {"adapt": ["tent", "views"]}}))
    message = r"(?s)conditions adapt.lr: adapt in \[tent\] before, adapt in \[tent, views\] now.*adapt.views"
    with pytest.raises(UserError, match=message):
        refuse_other_terms("s", before, now)


TOY = (
    *("hydra/sweeper/pruner=none", "hydra.sweeper.n_trials=6", "hydra.sweeper.enqueue=[]"),
    "++hydra.sweeper.conditions={lora.r: {image: [native]}}",
)


def test_a_study_leaves_a_cell_empty_and_the_final_run_does_without(tmp_path: Path) -> None:
    run_toy(tmp_path, *TOY, "hydra/sweeper/pruner=promote", "lora.r=8,64", "lr=1e-3,1e-2")
    rows = board_rows(tmp_path)
    assert {(row["image"], row["lora.r"] == "") for row in rows} == {("native", False), ("pad_512", True)}
    assert len(rows) == 6  # of 2 x (2 + 1) points none twice
    study = StudyFolder(tmp_path / "multirun/toy")
    assert all(
        (trial.parameters["lora.r"] == "") == ("lora.r" not in t.params)
        for trial, t in zip(study.trials(), trials_of(tmp_path), strict=True)
    )
    assert read_leaderboard(study.leaderboard)[0].parameters["lora.r"] == 64.0
    assert "lora:\n  r: 64" in study.winner.read_text()


def test_a_winner_to_which_a_key_does_not_apply_keeps_the_configurations_value(tmp_path: Path) -> None:
    given = ("lora.r=2,4", "lr=1e-3,2e-3", "image=pad_512,native")  # the toy's own r of 8 is the best
    run_toy(tmp_path, *TOY, *given, "hydra/sweeper/sampler=grid")
    assert board_rows(tmp_path)[0]["lora.r"] == ""
    best = (tmp_path / "multirun/toy/best.yaml").read_text()
    assert "override /image: pad_512" in best
    assert "lora" not in best
    assert '"r": 8' in (tmp_path / "multirun/toy/final/metrics.json").read_text()


@pytest.mark.parametrize("sampler", ["tpe", "thompson"])
def test_a_study_that_is_taken_up_again_ends_as_one_in_one_go(sampler: str, tmp_path: Path) -> None:
    (tmp_path / "once").mkdir()
    (tmp_path / "twice").mkdir()
    given = (*TOY, f"hydra/sweeper/sampler={sampler}", "hydra.sweeper.final=false")
    run_toy(tmp_path / "once", *given)
    run_toy(tmp_path / "twice", *given, "hydra.sweeper.n_trials=5")
    run_toy(tmp_path / "twice", *given)
    assert outcome(tmp_path / "once") == outcome(tmp_path / "twice")
