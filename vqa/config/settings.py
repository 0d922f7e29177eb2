"""What a run may be told: our own keys, each with its type, its range and its meaning.

The values stand in conf/; there are no defaults here. `vqa.config.check` refuses what does not fit, and
`vqa.config.reference` prints the page docs/settings.md from the strings below the fields.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Protocol

from annotated_types import Ge, Gt, Le, Lt

from vqa.question import Question

Count = Annotated[int, Ge(1)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Gt(0), Le(1)]

Stage = Literal[
    "final",
    "trial",
    "predict",
    "evaluate",
    "doctor",
    "status",
    "report",
    "merge",
    "serve",
    "ensemble",
    "compare",
]
Method = Literal[
    "none",
    "tent",
    "sar",
    "consistency",
    "lora_align",
    "repair",
    "views",
    "zero",
    "tpt",
    "prompt_tuning_online",
    "prompt_align",
]


def is_under(key: str, names: Iterable[str]) -> bool:
    """Whether a dotted key is one of the names or below one: `env.device` is under `env`, `envy` is not."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


class Data(Protocol):
    """Where questions come from; conf/data/*.yaml names the class."""

    def train(self) -> list[Question]:
        """Labelled questions for the split."""

    def test(self) -> list[Question] | None:
        """Questions to answer, labelled or not; None: none."""

    def check(self) -> list[str]:
        """Every problem of the files, for stage=doctor."""


class Group:
    """A node of the configuration: pydantic checks it by the types of its fields.

    A text among the limits of a type is the value's unit.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "extra": "forbid",
        "coerce_numbers_to_str": True,  # study=2024 is a name
    }


@dataclass
class ModelSettings(Group):
    name: str
    """Name of the option, shown on pages."""
    path: str
    """The base model: hub id or folder; `asset:tiny` is the embedded model."""
    revision: str | None
    """Revision on the hub; null: the newest."""
    license: str
    """Licence of the base model; the adapter's model card repeats it."""
    min_visual_tokens: int
    """Fewest visual tokens of a picture."""
    max_visual_tokens: int | None
    """Most visual tokens of a picture; null: no limit."""
    lr: float
    """Learning rate that suits the model; the default of `optimizer.lr`."""
    lr_low: float
    """Lower end of the learning rates that `+sweep=lora` searches."""
    lr_high: float
    """Upper end of the learning rates that `+sweep=lora` searches."""
    known_good: list[Any]
    """Configurations that a sweep tries first: key and value."""


@dataclass
class QuantizationSettings(Group):
    name: str
    """Name of the option, shown on pages."""
    weights: dict[str, Any] | None
    """Arguments of `transformers.BitsAndBytesConfig`; null: the weights as stored."""


@dataclass
class SchedulerSettings(Group):
    warmup_ratio: Annotated[float, Ge(0), Lt(1)]
    """Share of the optimizer steps in which the learning rate rises."""
    schedule: dict[str, Any]
    """Arguments of `transformers.get_scheduler`; `name` is any schedule it knows."""


@dataclass
class ImageSettings(Group):
    mode: Literal["native", "resize", "pad"]
    """How pictures are scaled. native: own size and shape; resize: to a square; pad: into a padded square."""
    size: Annotated[int, Ge(28), "pixels"] | None
    """Side of the square, for resize and pad; null for native."""
    min_visual_tokens: Count
    """Fewest visual tokens of a picture; smaller pictures are scaled up."""
    max_visual_tokens: int | None
    """Most visual tokens of a picture; larger pictures are scaled down; null: no limit."""
    cache_gib: Annotated[float, Ge(0), "GiB"] | None
    """Host memory for vision features; 0: no cache; null: a quarter of the memory stays free."""
    cache_dir: str | None
    """Folder that keeps vision features for other workers and later runs; null: none."""
    cache_disk_gib: Annotated[float, Gt(0), "GiB"]
    """Most that this folder holds; the files not used for longest are deleted first."""


@dataclass
class PromptSettings(Group):
    system: str
    """System prompt, the same for every question."""
    user: str
    """Template of the user's turn. {question}; {options}: a line for each option; {letters}: their letters,
    as in "a, b, c, d". {a}, {b}, ... name the options one by one, for questions with as many."""
    reasoning: str
    """Template of the reasoning prompt, with the same fields."""
    option_line: str
    """Template of a line of {options}, with the fields {letter} and {option}."""
    n_options: Annotated[int, Ge(2), Le(6)] | None
    """Options that the texts speak of; other questions are refused. null: of any number."""
    entropy_threshold: Annotated[float, Ge(0), "nats"] | None
    """Entropy (at most ln n nats with n options: 1.39 with four) above which a question is asked again with
    `prompt.reasoning`; null: never."""


@dataclass
class LrTunedSettings(Group):
    """The K-fold trials that chose the learning rate; `folds` is None when none did."""

    subsample: int | None
    """Training questions of the trials that chose the learning rate; null: all. `best.yaml` fills it in."""
    folds: int | None
    """Folds of these trials; null: no trials chose the learning rate."""
    epochs: int | None
    """Epochs of these trials."""

    def passes(self, pool: int) -> int | None:
        """Questions that one fit of such a trial saw, counted with repetition, from a pool of that size."""
        if self.folds is None or self.epochs is None:
            return None
        sample = min(self.subsample or pool, pool)
        return sample * (self.folds - 1) // self.folds * self.epochs


@dataclass
class BudgetSettings(Group):
    subsample: Count | None
    """Training questions to use; null: all."""
    holdout_share: Annotated[float, Gt(0), Le(0.5)]
    """Share of the labelled questions that is held out: never trained on, and never seen by a sweep."""
    folds: Count
    """Folds of the cross-validation; 1: none. A trial needs 2."""
    epochs: Count
    """Passes over the training questions."""
    batch_size: Count
    """Questions per optimizer step."""
    micro_batch_size: Count | None
    """Most questions on the device at once; null: as many as fit. The result is the same."""
    max_memory_gib: Annotated[float, Gt(0), "GiB"] | None
    """GPU memory to use; less than there is simulates a smaller GPU; null: all of it."""
    eval_batch_size: Count
    """Questions per forward pass when scoring."""
    evaluations_per_fit: Count
    """How often one fit scores the held-out part; in a trial, each score goes to the pruner."""
    max_grad_norm: Annotated[float, Gt(0)]
    """Norm to which gradients are clipped."""
    checkpoint_steps: Count
    """Optimizer steps between two checkpoints; an interrupted final run loses at most these."""
    test_limit: Count | None
    """Rows of the test file to answer, from the top; null: all."""
    lr_tuned: LrTunedSettings
    lr_horizon_exponent: Annotated[float, Ge(0), Le(1)]
    """The learning rate is multiplied by (passes of a trial / passes of this run) to this power."""
    keep_fold_adapters: bool
    """true: trials that train alike share the adapters of their folds."""


@dataclass
class InferenceSettings(Group):
    readout: Literal["letters", "generate", "reasoning"]
    """How the answer is read. letters: their probabilities; generate: a text; reasoning: a longer text."""
    orders: Literal["written", "cyclic"]
    """Orders of the options that are asked. cyclic: the average over the cyclic orders, as many as
    there are options."""
    debias: Literal["none", "pride"]
    """pride: estimate the option-position bias on some questions and divide it out."""
    pride_share: Share
    """Share of the questions that pride asks in all orders."""
    calibration: Literal["none", "batch", "contextual"]
    """Divide the mean answer out: batch, of all questions; contextual, of questions without content."""
    max_new_tokens: Count
    """Most tokens of a generated answer."""
    reasoning_tokens: Count
    """Most tokens of a reasoning; a text that is cut off before its answer counts as no answer."""
    on_no_answer: Literal["letters", "error"]
    """When a text holds no answer. letters: take the letter probabilities and flag the row; error: stop."""
    temperature: Literal["auto"] | Annotated[float, Gt(0)]
    """Temperature of calibrated probabilities. auto: fitted on the held-out rows by stage=final, and kept
    beside the adapter; 1: the model's own. Prediction files keep the model's own."""
    min_option_mass: float
    """Warn when the letters together have less probability than this on average."""


@dataclass
class AdaptSettings(Group):
    method: Method
    """Test-time method. Measured on eleven shifts of two datasets: repair helps on dark and inverted
    pictures; no other one gains more than chance in the mean (docs/answers_and_adaptation.md)."""
    parameters: Literal["lora", "norm"]
    """What a method trains. lora: the adapter; norm: the RMSNorm weights of the language model."""
    optimizer: Literal["adam", "sgd"]
    """Optimizer; sgd has momentum 0.9."""
    lr: NotNegative
    """Learning rate of the adapter's weights, or of the soft prompt; 0: the trained model."""
    norm_lr: NotNegative
    """Learning rate of the RMSNorm weights, with `adapt.parameters=norm`."""
    steps: Count
    """Steps per batch."""
    batch_size: Count
    """Questions that are adapted on together."""
    episodic: bool
    """true: every batch starts from the trained weights."""
    views: Count
    """Views of each picture, the picture itself included."""
    keep_share: Share
    """Share of the views that count, the surest first."""
    entropy_limit: Share
    """Times ln n, of n options: entropy above which a question teaches nothing."""
    reset_below: Annotated[float, Gt(0), Lt(1)] | None
    """sar: share of the trained model's entropy on sure questions; the weights are reset once the moving
    average is below it; null: never."""
    rho: NotNegative
    """Radius of the sharpness-aware step."""
    weight: NotNegative
    """Weight of a method's second loss."""
    source_size: Count
    """Training questions that source statistics are taken from."""
    guard_label_share: Share
    """How much larger one letter's share of the last 64 answers may be than in the trained model's answers to
    the same questions; above it the weights are reset."""
    guard_kl: Annotated[float, Gt(0), "nats"]
    """Distance (KL divergence) from the trained model's answers above which the weights are reset."""
    seed: int
    """Seed of views and random starts."""

    @property
    def rate(self) -> float:
        """The learning rate of the weights that `parameters` names."""
        return self.norm_lr if self.parameters == "norm" else self.lr


@dataclass
class FinalSettings(Group):
    members: Literal["folds"] | Count
    """Adapters that stage=final trains and averages. A number: with `train_seed` and those after it; folds:
    one without each fold of the training part."""


@dataclass
class EnsembleSettings(Group):
    members: list[str]
    """Files `test_predictions.csv` to average."""
    selection: Literal["all", "greedy", "fitted"]
    """all: equal weights; the others weigh on the `valid_predictions.csv` beside each member. greedy: add the
    member that helps most, again and again; fitted: lowest NLL, pulled towards a share for each family."""


@dataclass
class DoctorSettings(Group):
    card: Literal["t4", "l4", "rtx3090", "rtx4090", "a100", "h100", "h200"] | None
    """GPU for which `stage=doctor` estimates the time of a whole contest; null: the one found, or a T4."""


@dataclass
class TrackingSettings(Group):
    enabled: bool
    """Whether the run is recorded."""
    store: Literal["mlflow", "wandb", "tensorboard"]
    """What records it; chosen with the group `tracking`."""
    uri: str
    """mlflow: address of the store; wandb, tensorboard: folder on this machine for its files."""
    experiment: str
    """Name of the MLflow experiment or of the W&B project; folder of TensorBoard's files below the uri."""
    mode: Literal["online", "offline"]
    """wandb: offline keeps runs on this disk, for `wandb sync` later."""
    parent_run_id: str | None
    """Run that this one stands under; a sweep fills it in."""


@dataclass
class EnvSettings(Group):
    data_path: str | None
    """Default of `data.image_root`."""
    hf_home: str | None
    """Cache of the Hugging Face hub; null: the library's own default."""
    output_root: str
    """Folder of all studies."""
    copy_images_to: str | None
    """Fast disk to which pictures are copied once; null: none."""
    offline: bool
    """true: never ask the hub."""
    device: Literal["auto", "cpu", "cuda"]
    """Device; auto: a GPU where there is one."""
    device_map: Literal["single", "balanced"]
    """single: the model on one GPU; balanced: its layers over all GPUs, for a model that one cannot hold."""
    compile: bool
    """torch.compile; false: slower, and starts 20 s sooner."""
    threads: Count | None
    """CPU threads of torch; null: its default."""
    port: Annotated[int, Ge(1024), Lt(2**16)]
    """Port of `stage=serve`."""


@dataclass
class Settings(Group):
    """One run, checked. Library nodes (lora, optimizer, data, ...) stay dictionaries with `_target_`."""

    study: str
    """Name of the folder `multirun/<study>` and of the MLflow experiment."""
    stage: Stage
    """What to do; a sweep sets trial."""
    seed: Annotated[int, Ge(0), Lt(2**31)]
    """Seed of the split, the subsample and the folds; what trials must share to be compared."""
    train_seed: Annotated[int, Ge(0), Lt(2**31)]
    """Seed of the training: the adapter's first weights, order of questions and options. Another one trains
    the same configuration on the same folds again."""
    loss: Literal["answer_only", "choice_ce", "full"]
    """Loss. answer_only: on the answer's tokens; choice_ce: on the option letters; full: on every token."""
    precision: Literal["auto", "float32", "bfloat16", "float16"]
    """Computing type; auto: bfloat16 on GPUs that have it, float16 on older ones, float32 on CPUs."""
    adapter: str | None
    """Folder of the adapter for predict, evaluate, merge and serve; null: that of the study's final run."""
    compare: str | None
    """Study, or folder of a run, with which `stage=compare` compares the study."""
    notify: str | None
    """Program, or http(s) address, that is told when the command is done or has failed; on the command line
    only."""
    winner: Literal["auto", "none"]
    """Whether stage=final takes the study's `best.yaml`. auto: when there is one; none: never."""
    lang: Literal["en", "ko"]
    """Language of messages, and in which pages open."""
    model: ModelSettings
    quantization: QuantizationSettings
    lora: dict[str, Any]
    """Arguments of `peft.LoraConfig`."""
    optimizer: dict[str, Any]
    """Arguments of the optimizer's class."""
    scheduler: SchedulerSettings
    data: dict[str, Any]
    """Arguments of the class that reads the questions."""
    image: ImageSettings
    prompt: PromptSettings
    budget: BudgetSettings
    inference: InferenceSettings
    adapt: AdaptSettings
    final: FinalSettings
    ensemble: EnsembleSettings
    doctor: DoctorSettings
    tracking: TrackingSettings
    env: EnvSettings
    plain: dict[str, Any] = field(default_factory=dict)  # the whole configuration, resolved, for the records
