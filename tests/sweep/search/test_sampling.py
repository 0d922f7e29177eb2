"""Samplers and pruners from config nodes; draws that do not depend on where they were cut off."""

import sys
from types import ModuleType
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from vqa.errors import UserError
from vqa.sweep.search.sampling import SamplerFactory, _is_there, build_pruner, draw, probe_sampler
from vqa.sweep.search.space import SearchSpace

SPACE = SearchSpace(
    {
        "lr": FloatDistribution(1e-5, 1e-1, log=True),
        "r": CategoricalDistribution((8, 16, 32)),
        "layers": IntDistribution(1, 9),
    },
    (),
)
GRID = SearchSpace({"r": CategoricalDistribution((8, 16, 32)), "layers": IntDistribution(1, 2)}, ())
TPE = {"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 3}
RANDOM = {"_target_": "optuna.samplers.RandomSampler"}
GRID_NODE = {"_target_": "optuna.samplers.GridSampler", "_partial_": True}


def study_with(samplers: SamplerFactory, n_trials: int, space: SearchSpace) -> optuna.Study:
    study = optuna.create_study()
    for number in range(n_trials):
        study.sampler = samplers.build(number)
        trial = study.ask()
        draw(trial, space)
        study.sampler = optuna.samplers.RandomSampler()
        study.tell(trial, number % 3)
    return study


@pytest.mark.parametrize("drawn", [0, 1, 2, 3])
@pytest.mark.parametrize("n_before", [1, 6], ids=["among_the_first", "with_a_history"])
@pytest.mark.parametrize(
    ("node", "space"), [(TPE, SPACE), (RANDOM, SPACE), (GRID_NODE, GRID)], ids=["tpe", "random", "grid"]
)
def test_parameters_not_drawn_before_the_cut_come_out_the_same(
    node: dict[str, Any], space: SearchSpace, n_before: int, drawn: int
) -> None:
    samplers = SamplerFactory(node, 7, space)
    whole = study_with(samplers, n_before, space)
    whole.sampler = samplers.build(n_before)
    expected = whole.ask()
    draw(expected, space)

    broken = study_with(samplers, n_before, space)
    broken.sampler = samplers.build(n_before)
    cut_off = broken.ask()
    for name, distribution in list(space.distributions.items())[:drawn]:
        cut_off._suggest(name, distribution)
    broken.sampler = samplers.build(n_before)  # another process adopts it
    adopted = Trial(broken, cut_off._trial_id)
    draw(adopted, space)
    assert adopted.params == expected.params


def test_fixed_values_of_an_enqueued_trial_are_kept_and_the_rest_is_drawn() -> None:
    study = optuna.create_study(sampler=SamplerFactory(RANDOM, 0, SPACE).build(0))
    study.enqueue_trial({"r": 32})
    trial = study.ask()
    draw(trial, SPACE)
    assert trial.params["r"] == 32
    assert set(trial.params) == {"lr", "r", "layers"}


def test_each_trial_of_a_seed_draws_its_own_numbers() -> None:
    def draws(seed: int) -> list[float]:
        return [
            trial.params["lr"] for trial in study_with(SamplerFactory(RANDOM, seed, SPACE), 4, SPACE).trials
        ]

    assert draws(0) == draws(0)
    assert draws(0) != draws(1)
    assert len(set(draws(0))) == 4


def test_a_seed_in_the_samplers_own_node_wins() -> None:
    with_seed = SamplerFactory({**RANDOM, "seed": 3}, None, SPACE)
    assert study_with(with_seed, 2, SPACE).trials[1].params == (
        study_with(SamplerFactory(RANDOM, 3, SPACE), 2, SPACE).trials[1].params
    )


def test_the_grid_is_visited_once_to_its_end() -> None:
    study = study_with(SamplerFactory(GRID_NODE, 0, GRID), GRID.size(), GRID)
    assert len({tuple(trial.params.values()) for trial in study.trials}) == GRID.size() == 6


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "optuna.samplers.TEPSampler"}, "Optuna has no optuna.samplers.TEPSampler"),
        ({"_target_": "optuna.samplers.TPESampler", "n_startup": 3}, "cannot be built(?s:.*)n_startup"),
        (
            {"_target_": "optuna.samplers.TPESampler", "gamma": {"_target_": "os.getcwd"}},
            "must be a class of optuna.samplers",
        ),
        ({"_target_": "optuna.samplers.nsgaii"}, "Optuna has no"),
    ],
)
def test_a_sampler_that_cannot_be_had_is_refused(node: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"hydra.sweeper.sampler: (?s:.*){message}"):
        SamplerFactory(node, 0, SPACE)


def test_a_grid_needs_steps() -> None:
    with pytest.raises(UserError, match=r"hydra.sweeper.params.lr must be choice\(...\) or range\(...\)"):
        SamplerFactory(GRID_NODE, 0, SPACE)


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "optuna.pruners.MedianPruner", "typo": 1},
        {"_target_": "optuna.samplers.RandomSampler"},
    ],
)
def test_a_pruner_that_cannot_be_had_is_refused(node: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"hydra.sweeper.pruner"):
        build_pruner(node)


QMC = {"_target_": "optuna.samplers.QMCSampler", "scramble": True}
NUMBERS = SearchSpace({"lr": FloatDistribution(0.0, 1.0), "dropout": FloatDistribution(0.0, 1.0)}, ())


def test_a_scrambled_sequence_is_scrambled_once_and_so_fills_the_space_evenly() -> None:
    trials = study_with(SamplerFactory(QMC, 0, NUMBERS), 9, NUMBERS).trials
    for name in NUMBERS.keys:  # the first trial is random; the next eight lie in eight different eighths
        assert {int(8 * trial.params[name]) for trial in trials[1:]} == set(range(8))


@pytest.mark.parametrize("node", [TPE, RANDOM, QMC])
def test_a_sampler_that_can_draw_passes_the_probe(node: dict[str, Any]) -> None:
    probe_sampler(SamplerFactory(node, 0, SPACE), SPACE)


def test_a_sampler_whose_package_is_missing_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)  # as if it were not installed
    cma_es = {"_target_": "optuna.samplers.CmaEsSampler"}
    with pytest.raises(UserError, match=r"CmaEsSampler cannot draw from this space: .*cmaes.*Install what"):
        probe_sampler(SamplerFactory(cma_es, 0, NUMBERS), NUMBERS)


def test_a_sampler_that_does_not_support_the_space_is_refused_at_the_start() -> None:
    brute_force = {"_target_": "optuna.samplers.BruteForceSampler"}
    with pytest.raises(UserError, match=r"BruteForceSampler cannot draw from this space: .*step"):
        probe_sampler(SamplerFactory(brute_force, 0, NUMBERS), NUMBERS)


BOTORCH = {"_target_": "optuna_integration.BoTorchSampler", "n_startup_trials": 3}


def test_a_sampler_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqa.sweep.search.sampling.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs .*botorch: pip install optuna-integration botorch"):
        SamplerFactory(BOTORCH, 0, SPACE)


@pytest.mark.extras
def test_botorch_draws_a_trial() -> None:
    probe_sampler(SamplerFactory(BOTORCH, 0, SPACE), SPACE)


def test_a_package_that_hides_itself_once_it_is_imported_is_still_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hidden = ModuleType("hides_itself")  # as optuna_integration 5: its __spec__ is None
    monkeypatch.setitem(sys.modules, "hides_itself", hidden)
    assert _is_there("hides_itself")
    assert not _is_there("never_installed_here")
