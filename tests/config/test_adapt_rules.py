"""Values out of range, and read-outs that adaptation does not go with, are refused by name."""

from typing import get_args

import pytest

from tests.conftest import Compose
from vqa.answer.adapt.loop import METHODS as MADE
from vqa.config.check import read_settings
from vqa.config.settings import Method
from vqa.errors import UserError


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adapt.method=tnet"], r"adapt.method must be one of none, tent, sar, .*got 'tnet'"),
        (["adapt.parameters=all"], r"adapt.parameters must be one of lora, norm, got 'all'"),
        (["adapt.optimizer=lion"], r"adapt.optimizer must be one of adam, sgd, got 'lion'"),
        (["adapt.lr=-1"], r"adapt.lr must be >= 0, got -1"),
        (["adapt.steps=0"], r"adapt.steps must be >= 1, got 0"),
        (["adapt.batch_size=0"], r"adapt.batch_size must be >= 1, got 0"),
        (["adapt.views=0"], r"adapt.views must be >= 1, got 0"),
        (["adapt.source_size=0"], r"adapt.source_size must be >= 1, got 0"),
        (["adapt.keep_share=0"], r"adapt.keep_share must be in \(0, 1\], got 0"),
        (["adapt.entropy_limit=1.5"], r"adapt.entropy_limit must be in \(0, 1\], got 1.5"),
        (["adapt.guard_label_share=2"], r"adapt.guard_label_share must be in \(0, 1\], got 2"),
        (["adapt.guard_kl=0"], r"adapt.guard_kl must be > 0 nats, got 0"),
        (["adapt.reset_below=0"], r"adapt.reset_below must be in \(0, 1\) or null, got 0"),
        (["adapt.norm_lr=-1"], r"adapt.norm_lr must be >= 0, got -1"),
        (["adapt.rho=-1"], r"adapt.rho must be >= 0, got -1"),
        (["adapt.weight=-1"], r"adapt.weight must be >= 0, got -1"),
        (
            ["+adapt.lrr=1"],
            r"unknown key 'adapt.lrr' \(did you mean adapt.lr\?\); known keys of adapt: method, ",
        ),
        (["adapt=consistency", "adapt.views=1"], r"adapt.views must be >= 2 with adapt=consistency"),
        (["adapt=zero", "adapt.views=1"], r"adapt.views must be >= 2 with adapt=zero"),
        (["adapt=tpt", "adapt.episodic=false"], r"adapt.episodic must be true with adapt=tpt"),
        (["adapt=prompt_tuning_online", "adapt.episodic=true"], r"adapt.episodic must be false with adapt=p"),
        (["adapt=tent", "stage=serve"], r"stage must be final, predict or evaluate with adapt=tent"),
        (
            ["adapt=tent", "inference=cyclic"],
            r"inference.orders must be written with adapt=tent \(or use adapt=none\), got 'cyclic'",
        ),
        (["adapt=sar", "inference=pride"], r"inference.debias must be none with adapt=sar"),
        (["adapt=sar", "inference=contextual"], r"inference.calibration must be none with adapt=sar"),
        (["adapt=tent", "inference=generate"], r"inference.readout must be letters with adapt=tent"),
        (["adapt=tent", "prompt=auto"], r"prompt.entropy_threshold must be null with adapt=tent"),
    ],
    ids=str,
)
def test_a_mistake_is_named_with_its_rule(composed: Compose, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_settings(composed(*overrides))


def test_a_sweep_may_name_a_method_for_its_final_run(composed: Compose) -> None:
    assert read_settings(composed("+sweep=lora", "adapt=tent")).adapt.method == "tent"


def test_every_method_that_can_be_named_is_there() -> None:
    assert {"none", *MADE} == set(get_args(Method))
