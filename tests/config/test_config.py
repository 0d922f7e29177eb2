"""Every mistake in a configuration is refused before a model loads, with key and rule."""

import pytest

from tests.conftest import Compose
from vqa.config.check import read_settings
from vqa.errors import UserError


def test_the_plain_configuration_is_accepted(composed: Compose) -> None:
    settings = read_settings(composed())
    assert (settings.stage, settings.model.name, settings.study) == ("final", "tiny", "default")
    assert settings.plain["lora"]["r"] == settings.lora["r"]


def test_mlflow_is_the_default_record(composed: Compose) -> None:
    assert composed("tracking=mlflow").tracking == composed().tracking
    assert composed().tracking.store == "mlflow"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+lora.rnak=8", r"lora.rnak: peft.LoraConfig has no such argument; it has: .*lora_alpha"),
        ("+optimizer.learning_rate=1", r"optimizer.learning_rate: torch.optim.AdamW has no such argument"),
        (
            "+image.sise=3",
            r"unknown key 'image.sise' \(did you mean image.size\?\); known keys of image: mode, size, ",
        ),
        ("+foo=1", r"unknown key 'foo'; known keys at the top: .*budget"),
        ("+scheduler.schedule.nmae=x", r"scheduler.schedule.nmae: transformers.get_scheduler has no such"),
        ("+data.trian_size=3", r"data.trian_size: vqa.data.easy_vqa.EasyVqa has no such argument"),
        ("optimizer._target_=os.system", r"optimizer._target_ must be one of torch.optim.\*, .*'os.system'"),
        ("lora._target_=peft.NothingConfig", r"lora._target_: 'peft.NothingConfig' cannot be imported"),
        ("lora._target_=peft.Nothing", r"lora._target_ must be a class of settings, ending in Config"),
        ("stage=finale", r"stage must be one of final, trial, .*got 'finale'"),
        ("ensemble.selection=best", r"ensemble.selection must be one of all, greedy, fitted"),
        ("loss=mse", r"loss must be one of answer_only, choice_ce, full, got 'mse'"),
        ("precision=fp8", r"precision must be one of auto, float32"),
        ("budget.epochs=0", r"budget.epochs must be >= 1, got 0"),
        ("budget.epochs=many", r"budget.epochs must be a whole number >= 1, got 'many'"),
        ("budget.epochs=true", r"budget.epochs must be a whole number >= 1, got True"),
        ("budget.epochs=2.5", r"budget.epochs must be a whole number >= 1, got 2.5"),
        ("tracking.enabled=maybe", r"tracking.enabled must be true or false, got 'maybe'"),
        ("ensemble.members=[{a: b}]", r"ensemble.members must be a list, got \{'a': 'b'\}"),
        ("~image.size", r"image.size is missing; give it on the command line as image.size=value"),
        ("+plain={}", r"unknown key 'plain'"),
        ("budget.batch_size=0", r"budget.batch_size must be >= 1, got 0"),
        ("budget.subsample=0", r"budget.subsample must be >= 1 or null, got 0"),
        ("budget.holdout_share=0.8", r"budget.holdout_share must be in \(0, 0.5\], got 0.8"),
        ("budget.max_grad_norm=0", r"budget.max_grad_norm must be > 0"),
        ("lora.r=0", r"lora.r must be an integer >= 1, got 0"),
        ("lora.r=1000000000", r"lora.r must be <= 16384, got 1000000000"),
        ("lora.r=eight", r"lora.r must be an integer >= 1, got 'eight'"),
        ("lora.lora_alpha=-1", r"lora.lora_alpha must be a number > 0, got -1"),
        (
            "+lora.init_lora_weights=pissa",
            r"lora.init_lora_weights must be true, false, gaussian, ",
        ),
        (
            "+lora.init_lora_weights=olora",
            r"others rewrite the base's weights, which all trials share",
        ),
        (
            "+lora.kasa_config={alpha: 1}",
            r"lora.kasa_config must be null \(it takes the smallest singular values out",
        ),
        (
            "+lora.alora_invocation_tokens=[5]",
            r"lora.alora_invocation_tokens must be null, .*acts after these tokens only",
        ),
        (
            "+lora.modules_to_save=[lm_head]",
            r"lora.modules_to_save must be null, .*the next trial would",
        ),
        ("+lora.bias=all", r"lora.bias must be none \(the base's biases stay frozen"),
        ("+lora.trainable_token_indices=[1]", r"lora.trainable_token_indices must be null"),
        ("+lora.layer_replication=[[0,2]]", r"lora.layer_replication must be null"),
        ("lora.lora_dropout=1.5", r"lora.lora_dropout must be in \[0, 1\), got 1.5"),
        ("optimizer.lr=0", r"optimizer.lr must be a number > 0, got 0"),
        ("optimizer.lr=fast", r"optimizer.lr must be a number > 0, got 'fast'"),
        ("scheduler.warmup_ratio=1", r"scheduler.warmup_ratio must be in \[0, 1\), got 1"),
        ("image.mode=crop", r"image.mode must be one of native, resize, pad, got 'crop'"),
        ("image.size=448", r"image.size must be null with image.mode=native"),
        ("image.max_visual_tokens=1", r"image.max_visual_tokens must be >= min_visual_tokens, got 1"),
        ("image.cache_gib=-1", r"image.cache_gib must be >= 0"),
        ("image.cache_disk_gib=0", r"image.cache_disk_gib must be > 0"),
        ("prompt.user='no fields'", r"prompt.user must be a text that contains \{question\}"),
        (
            "inference.readout=guess",
            r"inference.readout must be one of letters, generate, reasoning, got 'guess'",
        ),
        ("inference.orders=all", r"inference.orders must be one of written, cyclic, got 'all'"),
        ("inference.debias=yes", r"inference.debias must be one of none, pride"),
        ("inference.calibration=platt", r"inference.calibration must be one of none, batch, contextual"),
        ("inference.temperature=0", r"inference.temperature must be auto or a number > 0, got 0"),
        ("inference.temperature=hot", r"inference.temperature must be auto or a number > 0, got 'hot'"),
        ("final.members=0", r"final.members must be folds or a whole number >= 1, got 0"),
        ("final.members=fold", r"final.members must be folds or a whole number >= 1, got 'fold'"),
        ("final.members=true", r"final.members must be folds or a whole number >= 1, got True"),
        ("inference.pride_share=0", r"inference.pride_share must be in \(0, 1\], got 0"),
        ("inference.reasoning_tokens=0", r"inference.reasoning_tokens must be >= 1, got 0"),
        ("prompt.entropy_threshold=-1", r"prompt.entropy_threshold must be >= 0 nats or null, got -1"),
        ("prompt.reasoning=think", r"prompt.reasoning must be a text that contains \{question\}"),
        ("env.device=tpu", r"env.device must be one of auto, cpu, cuda, got 'tpu'"),
        ("env.threads=0", r"env.threads must be >= 1 or null, got 0"),
        ("study=a/b", r"study must be a folder name, got 'a/b'"),
        ("seed=-1", r"seed must be in \[0, 2147483648\), got -1"),
        ("winner=yes_please", r"winner must be one of auto, none"),
    ],
)
def test_a_mistake_is_named_with_its_rule(composed: Compose, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_settings(composed(override))


def test_a_name_may_be_a_number(composed: Compose) -> None:
    assert read_settings(composed("study=2024")).study == "2024"


def test_a_trial_needs_two_folds(composed: Compose) -> None:
    with pytest.raises(UserError, match=r"budget.folds must be >= 2 for a K-fold trial, got 1"):
        read_settings(composed("stage=trial"))


def test_a_missing_environment_variable_is_explained(composed: Compose) -> None:
    with pytest.raises(UserError, match=r"'DATA_PATH' not found.*set it \(export NAME=value\)"):
        read_settings(composed("env=cloud"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("inference.orders=cyclic", r"inference.orders must be written with debias=pride, got 'cyclic'"),
        ("inference.calibration=batch", r"inference.calibration must be none with debias=pride, got 'batch'"),
    ],
)
def test_pride_stands_alone(composed: Compose, more: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_settings(composed("inference=pride", more))


@pytest.mark.parametrize("calibration", ["batch", "contextual"])
def test_a_calibration_of_cyclic_orders_would_change_nothing(composed: Compose, calibration: str) -> None:
    message = r"inference.calibration must be none with inference.orders=cyclic, which divides any preference"
    with pytest.raises(UserError, match=message):
        read_settings(composed("inference=cyclic", f"inference.calibration={calibration}"))
