"""What differs between kinds of vision-language models, as data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from vqa.data.image import UNLIMITED_TOKENS

Budget = Callable[[Any, int, int | None], dict[str, Any]]


def no_budget(_: Any, least: int, most: int | None) -> dict[str, Any]:
    """The processor decides alone how many visual tokens a picture gets."""
    return {}


@dataclass(frozen=True)
class Family:
    """One kind of model.

    Args:
        types: `model_type` of its configurations.
        own_text: Text types that our own decoder and tower compute; others go through transformers' forward.
        packed_text: Text types that our own decoder computes, with prompts and pictures by the processor.
        own_tower: Whether our own code around Qwen3-VL's tower looks at its pictures all the same.
        shares_prefix: Whether the prefix may be computed once (tests/model/families/test_families.py).
        linear: Names of the linear layers that `lora=all_linear` adapts; "" takes all of its text layers.
        attention: Those that `lora=attention` adapts.
        unquantised: Modules that stay in 16 bits; () takes all that stand beside its language model.
        template: Further arguments of its chat template.
        budget: Image processor, least and most visual tokens (None: no limit) to the processor's arguments.
        image_processor: Loads the image processor, where transformers has none without torchvision.
        looks_at_many: Whether its vision part takes several pictures of one shape at once, exactly.
        no_vllm: Why vLLM serves base and adapter badly; "" where it does not.
    """

    types: tuple[str, ...]
    own_text: tuple[str, ...] = ()
    packed_text: tuple[str, ...] = ()
    own_tower: bool = False
    shares_prefix: bool = False
    linear: str = ""
    attention: str = "q_proj|k_proj|v_proj|o_proj"
    unquantised: tuple[str, ...] = ()
    template: Mapping[str, Any] = field(default_factory=lambda: {"enable_thinking": False})
    budget: Budget = no_budget
    image_processor: Callable[..., Any] | None = None
    looks_at_many: bool = False
    no_vllm: str = ""

    def is_own(self, config: Any) -> bool:
        """Whether our own decoder computes a model of this family with this configuration."""
        return getattr(config.get_text_config(), "model_type", "") in self.own_text

    def is_packed(self, config: Any) -> bool:
        """Whether our own decoder can compute it, whoever writes its prompts: by its text type alone.

        Layers with a window, or another activation, are not what that type's layers usually are.
        """
        text = config.get_text_config()
        kinds = set(getattr(text, "layer_types", None) or ()) - {"full_attention", "linear_attention"}
        return text.model_type in self.packed_text and not kinds and text.hidden_act == "silu"

    def by_forward(self) -> "Family":
        """The same kind computed by transformers' forward alone, as a model on several GPUs is."""
        return replace(self, own_text=(), packed_text=(), own_tower=False)


QWEN_LINEAR = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"

# held exact by tests/model/families/test_families.py
tested = partial(Family, shares_prefix=True, looks_at_many=True, linear=QWEN_LINEAR)


def pixel_budget(processor: Any, least: int, most: int | None) -> dict[str, Any]:
    """Processors that scale a picture to an area: Qwen-VL's and what follows it."""
    side = processor.patch_size * processor.merge_size
    longest = (most or UNLIMITED_TOKENS) * side**2
    return {"size": {"shortest_edge": least * side**2, "longest_edge": longest}}
