"""Losses: on the letter, over the letters, over every token; each against the plain formula."""

from typing import Any

import pytest
import torch

from tests.conftest import Make
from tests.helpers.tiny_models import FAMILIES, IMAGE, PAD, TEXT, Shapes, gradients, trained_case
from vqa.model.adapter import adapter_state, attached
from vqa.model.decoder import answer_logits
from vqa.model.encode import Encoder
from vqa.model.letters import Letters, LetterTokens
from vqa.model.packing import pack, pad
from vqa.model.prompt import render
from vqa.question import Question
from vqa.train.fit import Evaluation, fit
from vqa.train.losses import answer_loss, batch_loss, choice_loss
from vqa.train.plan import plan_fit

LETTERS = LetterTokens(answer=(11, 3, 7, 5), spellings=((11, 3, 7, 5), (1, 2, 4, 6)))
NONE = Letters(lambda text: [ord(text[-1])])  # a whole conversation asks for no letter


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(6, 20, generator=torch.Generator().manual_seed(0))


def test_the_loss_is_cross_entropy_on_the_letters_token(logits: torch.Tensor) -> None:
    targets = torch.tensor([0, 1, 2, 3, 0, 1])
    tokens = torch.tensor([11, 3, 7, 5, 11, 3])
    expected = torch.nn.CrossEntropyLoss(reduction="sum")(logits, tokens)
    assert answer_loss(logits, targets, LETTERS).item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_loss_sums_over_questions(logits: torch.Tensor) -> None:
    targets = torch.tensor([3, 2, 1, 0, 3, 2])
    parts = [answer_loss(logits[i : i + 1], targets[i : i + 1], LETTERS) for i in range(6)]
    assert answer_loss(logits, targets, LETTERS).item() == pytest.approx(sum(p.item() for p in parts))


def test_half_precision_logits_are_summed_in_float32(logits: torch.Tensor) -> None:
    targets = torch.zeros(6, dtype=torch.long)
    loss = answer_loss(logits.bfloat16(), targets, LETTERS)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(answer_loss(logits.bfloat16().float(), targets, LETTERS).item())


def test_the_choice_loss_is_cross_entropy_over_four_letters_with_all_their_spellings(
    logits: torch.Tensor,
) -> None:
    targets = torch.tensor([0, 1, 2, 3, 0, 1])
    p = logits.softmax(1)
    letters = torch.stack([p[:, list(ids)].sum(1) for ids in zip(*LETTERS.spellings, strict=True)], dim=1)
    chosen = (letters / letters.sum(1, keepdim=True))[torch.arange(6), targets]
    assert choice_loss(logits, targets, LETTERS).item() == pytest.approx(-chosen.log().sum().item(), rel=1e-5)


SHAPES: dict[str, Shapes] = {
    "equal lengths": [(2, 2, 5), (2, 2, 5), (2, 2, 5)],
    "unequal pictures": [(2, 2, 5), (3, 4, 9), (4, 2, 5), (2, 5, 4)],
    "a question without its picture": [(2, 3, 5), None, (4, 2, 9)],
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("prefix_tokens", [2, 40])
def test_full_is_transformers_own_loss_of_the_padded_batch(
    family: str, shapes: Shapes, prefix_tokens: int
) -> None:
    base, model, prefix, suffixes = trained_case(family, shapes, prefix_tokens)
    plain = pad(prefix, suffixes, IMAGE, PAD, torch.device("cpu"))
    ids = plain["input_ids"]
    labels = ids.masked_fill((plain["attention_mask"] == 0) | (ids == IMAGE), -100)
    labels[torch.arange(len(ids)), plain["attention_mask"].argmax(1)] = -100  # nothing before the first
    reference_loss = model(**plain, labels=labels, use_cache=False).loss
    reference = gradients(model, reference_loss)

    packed = pack(prefix, suffixes, IMAGE, PAD, torch.device("cpu"), conversation=True)
    assert (packed.row.layout.prefix > 0) == (prefix_tokens == 40)  # both with a shared prefix and without
    assert packed.conversation is not None
    terms = packed.conversation.tokens
    assert terms == int((labels != -100).sum())
    loss = batch_loss("full", answer_logits(base, packed.row), packed, NONE) / terms
    found = gradients(model, loss)

    assert loss.item() == pytest.approx(reference_loss.item(), rel=1e-5)
    assert len(found) == 2 * 7 * TEXT["num_hidden_layers"]
    ours, theirs = (torch.cat([grads[name].flatten() for name in reference]) for grads in (found, reference))
    assert torch.linalg.norm(ours - theirs) <= 1e-5 * torch.linalg.norm(theirs)


def test_a_prefix_outside_the_row_is_refused_for_whole_conversations() -> None:
    with pytest.raises(ValueError, match=r"need their prefix in the row, got outside=True"):
        pack(torch.arange(3), [], IMAGE, PAD, torch.device("cpu"), outside=True, conversation=True)


def test_full_needs_whole_conversations(encoder: Encoder, questions: list[Question]) -> None:
    batch: Any = encoder.batch(questions[:2])
    with pytest.raises(ValueError, match=r"loss=full needs a batch packed with conversation=True"):
        batch_loss("full", torch.zeros(2, 5), batch, NONE)


def test_a_conversation_ends_with_the_letter_of_the_shuffled_answer_and_the_end_of_turn(
    encoder: Encoder, questions: list[Question]
) -> None:
    question, order = questions[0], (2, 0, 3, 1)
    tokenizer, prompt = encoder.base.tokenizer, encoder.prompt
    asked = render(tokenizer, prompt, question, order).suffix
    whole = render(tokenizer, prompt, question, order, answered=True).suffix
    letter = "abcd"[order.index("abcd".index(question.answer or ""))]
    assert whole == f"{asked}{letter}{tokenizer.eos_token}\n"


@pytest.mark.parametrize("loss", ["answer_only", "choice_ce", "full"])
def test_micro_batches_do_not_change_a_step(
    loss: str, encoder: Encoder, questions: list[Question], settings: Make
) -> None:
    # plain gradient descent: after one step of AdamW a gradient near zero may have moved a weight either way
    descent = ("optimizer._target_=torch.optim.SGD", "~optimizer.betas", "~optimizer.eps")
    found = []
    for size in (8, 3):
        micro = (f"loss={loss}", "budget.batch_size=8", f"budget.micro_batch_size={size}")
        made = settings(*micro, *descent)
        losses: list[Evaluation] = []
        with attached(encoder.base, made.lora, 0) as model:
            fit(encoder, model, questions[:8], plan_fit(made, 8), losses.append)
            state = torch.cat([t.flatten().clone() for n, t in adapter_state(model).items() if "lora_B" in n])
        found.append((losses[-1].train_loss, state))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    whole, cut = found[0][1], found[1][1]
    assert torch.linalg.norm(whole) > 0
    assert torch.linalg.norm(cut - whole) <= 1e-5 * torch.linalg.norm(whole)
