"""How a question becomes token ids for any model: its own chat template, cut where questions begin to differ.

The cut is at the longest common beginning of several rendered questions, in tokens, not at a mark: templates
put pictures in different places and join what stands before them into one token with them.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vqa.config.settings import PromptSettings
from vqa.errors import UserError
from vqa.machine.interrupt import time_limit
from vqa.model.prompt import (
    TEMPLATE_FAULTS,
    TEMPLATE_S,
    Order,
    answer_message,
    as_written,
    control_words,
    named_options,
    token_ids,
    user_text,
)
from vqa.question import FEWEST, MOST, Question

# Questions that differ in their first characters, with and without a picture: what all begin with is theirs.
PROBES = ("A", "0", "가", "\n", "- ?")


def _probes(prompt: PromptSettings) -> list[Question]:
    """The probes with as many options as the prompt names, or with few and with many."""
    named = named_options(prompt.user)
    counts = (FEWEST, MOST) if named is None else (named,)
    return [Question(text, None, "", text, (text,) * n) for n in counts for text in PROBES]


class PromptWriter:
    """Writes prompts for one model.

    Args:
        processor: Knows the chat template and the image token.
        tokenizer: Text to ids.
        template: Further arguments of the chat template, such as enable_thinking.
        placeholders: What may stand for a picture, of some pictures.
    """

    def __init__(
        self, processor: Any, tokenizer: Any, template: Mapping[str, Any], placeholders: Sequence[str]
    ) -> None:
        self.processor, self.tokenizer, self.template = processor, tokenizer, dict(template)
        self.placeholders = placeholders
        self.words = control_words(tokenizer)
        self.prefixes: dict[tuple[str, str], torch.Tensor] = {}

    def prefix(self, prompt: PromptSettings) -> torch.Tensor:
        """(P,) ids that the prompts of all questions begin with; no picture reaches into it."""
        key = prompt.system, prompt.user
        if key not in self.prefixes:
            rows = [
                self.ids(prompt, probe, as_written(probe), placeholders)
                for probe in _probes(prompt)
                for placeholders in ((), *((placeholder,) for placeholder in self.placeholders))
            ]
            shortest = min(map(len, rows))
            same = torch.stack([row[:shortest] == rows[0][:shortest] for row in rows]).all(0)
            self.prefixes[key] = rows[0][: int(same.int().cumprod(0).sum())]
        return self.prefixes[key]

    def suffix(
        self,
        prompt: PromptSettings,
        question: Question,
        order: Order,
        placeholders: Sequence[str],
        answered: bool,
    ) -> torch.Tensor:
        """(S,) ids after the prefix.

        Raises:
            UserError: The question's text runs into the prefix.
        """
        whole, prefix = self.ids(prompt, question, order, placeholders, answered), self.prefix(prompt)
        if not torch.equal(whole[: len(prefix)], prefix):
            raise UserError(
                f"question {question.id}: its first characters join with the prompt before them into one "
                "token; begin prompt.user with a word"
            )
        return whole[len(prefix) :]

    def ids(
        self,
        prompt: PromptSettings,
        question: Question,
        order: Order,
        placeholders: Sequence[str],
        answered: bool = False,
    ) -> torch.Tensor:
        """Token ids of a whole prompt.

        Args:
            prompt: The texts.
            question: What is asked.
            order: Which choice stands at a, b, c, ...
            placeholders: What stands for each picture, in their order; () without a picture.
            answered: Go on with the gold letter and what ends the assistant's turn.
        """
        text = self.text(prompt, question, order, len(placeholders), answered)
        if placeholders:
            between = text.split(self.processor.image_token)
            if len(between) != len(placeholders) + 1:
                raise UserError(
                    f"model: its chat template puts {len(between) - 1} of {len(placeholders)} pictures into "
                    f"the user's message ({self.processor.image_token}); choose another model"
                )
            text = "".join(itertools.chain(*zip(between, [*placeholders, ""], strict=True)))
        return torch.tensor(token_ids(self.tokenizer, text))

    def text(
        self,
        prompt: PromptSettings,
        question: Question,
        order: Order | None = None,
        pictures: int = 1,
        answered: bool = False,
    ) -> str:
        """The chat template filled in, the processor's image token where each picture goes."""
        order = as_written(question) if order is None else order
        content = [{"type": "text", "text": user_text(prompt, question, order, self.words)}]
        messages = [{"role": "user", "content": [*({"type": "image"} for _ in range(pictures)), *content]}]
        if prompt.system:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": prompt.system}]})
        if answered:
            messages.append(answer_message(question, order))
        try:
            with time_limit(TEMPLATE_S, computing=True):
                return str(
                    self.tokenizer.apply_chat_template(
                        messages,
                        chat_template=self.processor.chat_template,
                        tokenize=False,
                        add_generation_prompt=not answered,
                        **self.template,
                    )
                )
        except TEMPLATE_FAULTS as error:
            raise UserError(
                f"model: its chat template refuses the prompt ({type(error).__name__}: {error}); "
                "if it knows no system message: prompt.system='' and its text at the head of prompt.user"
            ) from error
