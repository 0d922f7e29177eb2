"""What a run may be told: our own keys as dataclasses. Their values stand in conf/, no defaults here."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from vqa.question import Question


class Data(Protocol):
    """Where questions come from; conf/data/*.yaml names the class."""

    def train(self) -> list[Question]:
        """Labelled questions for the split."""

    def test(self) -> list[Question] | None:
        """Questions to answer, labelled or not; None: none."""

    def check(self) -> list[str]:
        """Every problem of the files, for stage=doctor."""


@dataclass
class ModelSettings:
    name: str
    path: str
    revision: str | None
    license: str
    min_visual_tokens: int
    max_visual_tokens: int | None
    lr: float
    lr_low: float
    lr_high: float
    known_good: list[Any]


@dataclass
class QuantizationSettings:
    name: str
    weights: dict[str, Any] | None


@dataclass
class SchedulerSettings:
    warmup_ratio: float
    schedule: dict[str, Any]


@dataclass
class ImageSettings:
    mode: str
    size: int | None
    min_visual_tokens: int
    max_visual_tokens: int | None
    cache_gib: float | None
    cache_dir: str | None
    cache_disk_gib: float


@dataclass
class PromptSettings:
    system: str
    user: str
    reasoning: str
    entropy_threshold: float | None


@dataclass
class LrTunedSettings:
    """The K-fold trials that chose the learning rate; `folds` is None when none did."""

    subsample: int | None
    folds: int | None
    epochs: int | None

    def passes(self, pool: int) -> int | None:
        """Questions such a trial's fit saw, counted with repetition, out of a pool of that many."""
        if self.folds is None or self.epochs is None:
            return None
        sample = min(self.subsample or pool, pool)
        return sample * (self.folds - 1) // self.folds * self.epochs


@dataclass
class BudgetSettings:
    subsample: int | None
    holdout_share: float
    folds: int
    epochs: int
    batch_size: int
    micro_batch_size: int | None
    max_memory_gib: float | None
    eval_batch_size: int
    evaluations_per_fit: int
    max_grad_norm: float
    checkpoint_steps: int
    test_limit: int | None
    lr_tuned: LrTunedSettings
    lr_horizon_exponent: float
    keep_fold_adapters: bool


@dataclass
class InferenceSettings:
    readout: str
    orders: str
    debias: str
    pride_share: float
    calibration: str
    max_new_tokens: int
    reasoning_tokens: int
    on_no_answer: str
    min_option_mass: float


@dataclass
class AdaptSettings:
    method: str
    parameters: str
    optimizer: str
    lr: float
    steps: int
    batch_size: int
    episodic: bool
    views: int
    keep_share: float
    entropy_limit: float
    reset_below: float | None
    rho: float
    weight: float
    source_size: int
    guard_label_share: float
    guard_kl: float
    seed: int


@dataclass
class EnsembleSettings:
    members: list[str]
    selection: str


@dataclass
class TrackingSettings:
    enabled: bool
    uri: str
    experiment: str
    parent_run_id: str | None


@dataclass
class EnvSettings:
    data_path: str | None
    hf_home: str | None
    output_root: str
    copy_images_to: str | None
    offline: bool
    device: str
    compile: bool
    threads: int | None
    port: int


@dataclass
class Settings:
    """One run, checked. Library nodes (lora, optimizer, data, ...) stay dictionaries with `_target_`."""

    study: str
    stage: str
    seed: int
    loss: str
    precision: str
    adapter: str | None
    winner: str
    lang: str
    model: ModelSettings
    quantization: QuantizationSettings
    lora: dict[str, Any]
    optimizer: dict[str, Any]
    scheduler: SchedulerSettings
    data: dict[str, Any]
    image: ImageSettings
    prompt: PromptSettings
    budget: BudgetSettings
    inference: InferenceSettings
    adapt: AdaptSettings
    ensemble: EnsembleSettings
    tracking: TrackingSettings
    env: EnvSettings
    plain: dict[str, Any] = field(default_factory=dict)  # the whole configuration, resolved, for the records
