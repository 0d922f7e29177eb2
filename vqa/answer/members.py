"""Answers of one adapter or of several: each member answers on the resident base, and they are averaged.

An adapter's folder holds its weights. The folder that `final.members` makes holds one such folder a member,
`member_0`, `member_1` and so on, and one `calibration.json` for all of them.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vqa.answer.readout import answer
from vqa.answer.score import score
from vqa.answer.weighing import average
from vqa.config.settings import InferenceSettings, Settings
from vqa.errors import UserError, require
from vqa.model.adapter import adapter_state, loaded, restore, stored_state
from vqa.model.base import Base
from vqa.model.encode import Encoder
from vqa.model.prompt import refuse_other_options
from vqa.question import Question
from vqa.results.calibration import UNCHANGED, tempered
from vqa.results.folder import CALIBRATION, member_folders, read_json
from vqa.results.predictions import Prediction

log = logging.getLogger(__name__)


def refuse_texts(settings: Settings, what: str) -> None:
    """Refuse ways of answering whose texts cannot be averaged.

    Raises:
        UserError: The answer is read off generated text.
    """
    way = settings.inference.readout
    require(way == "letters", "inference.readout", f"letters with {what}: texts have no average", way)
    limit = settings.prompt.entropy_threshold
    require(limit is None, "prompt.entropy_threshold", f"null with {what}: texts have no average", limit)


def read_out(settings: Settings) -> dict[str, str]:
    """The settings that change the probabilities: a temperature holds for one set of them."""
    inference: InferenceSettings = settings.inference
    names = ("orders", "debias", "calibration")
    return {name: str(getattr(inference, name)) for name in names} | {"adapt": settings.adapt.method}


def base_temperature(adapter: Path) -> float:
    """The temperature of the model without the adapter, fitted on the same held-out rows; 1 where unknown."""
    return float(read_json(adapter / CALIBRATION).get("base_temperature", UNCHANGED))


def stored_temperature(adapter: Path, settings: Settings) -> float:
    """The temperature of answers with a stored adapter.

    Args:
        adapter: Its folder.
        settings: `inference.temperature` wins where it is a number.

    Returns:
        The one that was fitted when the adapter was trained; 1 where there is none for this way of answering.
    """
    wanted = settings.inference.temperature
    if wanted != "auto":
        return wanted
    stored: Mapping[str, Any] = read_json(adapter / CALIBRATION)
    if not stored:
        log.info("%s: no %s, so probabilities stay uncalibrated", adapter, CALIBRATION)
        return UNCHANGED
    if stored.get("read_out") != read_out(settings):
        log.warning(
            "%s: its temperature was fitted for another way of answering (%s); probabilities stay "
            "uncalibrated, or give inference.temperature=NUMBER",
            adapter / CALIBRATION,
            stored.get("read_out"),
        )
        return UNCHANGED
    return float(stored["temperature"])


@dataclass(frozen=True)
class Members:
    """The adapters of a folder, on the base; all their weights stay on the device.

    Args:
        folder: One adapter, or a folder of members.
        count: How many they are.
        each: Puts one after the other into force, and yields after each.
    """

    folder: Path
    count: int
    each: Callable[[], Iterator[None]]


@contextmanager
def loaded_members(base: Base, adapter: Path) -> Iterator[Members]:
    """Put the members of a folder on the base for the length of the block.

    Args:
        base: The resident model.
        adapter: One adapter, or a folder of members.

    Yields:
        The members.

    Raises:
        UserError: The folder holds no adapter, one for another model, or members of different shapes.
    """
    first, *others = member_folders(adapter)
    with loaded(base, first) as model:
        own = {name: tensor.detach().clone() for name, tensor in adapter_state(model).items()}
        states = [own] if others else []
        for folder in others:
            states.append(stored_state(folder, base.device))
            if {n: t.shape for n, t in states[-1].items()} != {n: t.shape for n, t in states[0].items()}:
                raise UserError(f"adapter={folder} does not fit beside {first}: other weights or shapes")

        def each() -> Iterator[None]:
            if not states:
                yield
            for state in states:
                restore(model, state)
                yield

        yield Members(adapter, 1 + len(others), each)


def answer_with_members(
    encoder: Encoder,
    members: Members,
    questions: Sequence[Question],
    settings: Settings,
    facts: dict[str, Any],
    source: Sequence[Question] = (),
) -> list[Prediction]:
    """Answer questions with a stored adapter, or with the average of stored members.

    Args:
        encoder: Makes batches.
        members: Of a folder, loaded.
        questions: In the file's order.
        settings: Of the run.
        facts: To be filled, see `vqa.answer.readout.answer`; of several members a list under "members".
        source: Training questions, for adaptation.

    Returns:
        One prediction per question; not calibrated.

    Raises:
        UserError: As `answer`; or texts were to be averaged.
    """
    several = members.count > 1
    if several:
        refuse_texts(settings, f"adapter={members.folder} (several members)")
    temperature = stored_temperature(members.folder, settings)
    by_member: list[list[Prediction]] = []
    each_facts: list[dict[str, Any]] = []
    for _ in members.each():
        each_facts.append({})
        by_member.append(answer(encoder, questions, settings, each_facts[-1], source, temperature))
    if not several:
        facts.update(each_facts[0])
        return by_member[0]
    if any(each_facts):
        facts["members"] = each_facts
    return average(by_member, [1] * len(by_member))


@contextmanager
def asked_one_by_one(
    encoder: Encoder, adapter: Path, temperature: float
) -> Iterator[Callable[[Question], Prediction]]:
    """A function that answers single questions with calibrated probabilities, for the length of the block.

    Args:
        encoder: Makes batches.
        adapter: One adapter, or a folder of members.
        temperature: Of the probabilities it gives.

    Raises:
        UserError: As `loaded_members`; the function's own: the prompt speaks of another number of options.
    """
    with loaded_members(encoder.base, adapter) as members:

        @torch.no_grad()
        def ask(question: Question) -> Prediction:
            refuse_other_options(encoder.prompt, [question])
            own = [score(encoder, [question], 1) for _ in members.each()]
            together = own[0] if len(own) == 1 else average(own, [1] * len(own))
            return tempered(together, temperature)[0]

        yield ask
