"""Questions with two to six options: exact letters, orders, priors, losses; what is refused by name."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import Make
from tests.helpers.tiny_checkpoints import write_folder
from tests.helpers.tiny_models import FAMILIES, IMAGE, PAD, Shapes, trained_case
from vqa.answer.debias import cyclic, cyclic_average, letter_prior, to_options
from vqa.answer.readout import final_letter, parse_letter, read_letters
from vqa.answer.score import score
from vqa.errors import UserError
from vqa.model.base import load_base
from vqa.model.context import refuse_options
from vqa.model.decoder import answer_logits
from vqa.model.encode import Encoder
from vqa.model.forward import known_prefix, letter_logits
from vqa.model.letters import Letters, letter_tokens, option_log_probabilities
from vqa.model.packing import pack, pad
from vqa.question import LETTERS, Question, guessing
from vqa.results.metrics import guessing_of
from vqa.results.predictions import Prediction
from vqa.train.losses import batch_loss, choice_loss

NUMBERS = (2, 3, 5, 6)
WORDS = ("red", "green", "blue", "grey", "a circle", "yellow")


def with_options(questions: Sequence[Question], numbers: Sequence[int]) -> list[Question]:
    """The questions with these numbers of options, by turns, each with a gold letter of its own."""
    made = []
    for place, question in enumerate(questions):
        n = numbers[place % len(numbers)]
        made.append(replace(question, choices=WORDS[:n], answer=LETTERS[place % n]))
    return made


def plain(encoder: Encoder, question: Question) -> list[float]:
    """Probabilities of the letters from the model's own forward of one padded row."""
    with torch.no_grad():
        logits = encoder.base.model(**encoder.padded([question]), use_cache=False).logits[0, -1]
    letters = encoder.base.letters[len(question.choices)].spellings
    return list(logits[torch.tensor(letters)].logsumexp(0).softmax(0).tolist())


@pytest.mark.parametrize("family", ["tiny", "exaone4_5"])
def test_letters_of_any_number_are_those_of_the_plain_forward(
    family: str, settings: Make, questions: list[Question], tmp_path: Path
) -> None:
    path = "asset:tiny" if family == "tiny" else str(write_folder(family, tmp_path / family))
    made = settings(f"model.path={path}", "prompt=direct_ko")
    encoder = Encoder(load_base(made), made.prompt, made.image)
    asked = with_options(questions[:8], NUMBERS)
    expected = [plain(encoder, question) for question in asked]
    scored = score(encoder, asked, 8)  # of each number apart, the prefix as the batch has it
    for found, right in zip(scored, expected, strict=True):
        assert found.p == pytest.approx(right, abs=1e-5)
    known = known_prefix(encoder.base, encoder.prefix(asked[0]))
    if encoder.base.is_own:  # one batch of all numbers, with the prefix in it and before it
        both = {False: None, True: known}
        for outside, states in both.items():
            logits = letter_logits(encoder.base, encoder.batch(asked, outside=outside), states)
            for row, right in zip(logits, expected, strict=True):
                letters = torch.tensor(encoder.base.letters[len(right)].spellings)
                assert row[letters].logsumexp(0).softmax(0).tolist() == pytest.approx(right, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prefix_tokens", [2, 40])
def test_packed_letters_of_any_number_are_those_of_padded_rows(family: str, prefix_tokens: int) -> None:
    shapes: Shapes = [(2, 2, 5), (3, 4, 9), None, (2, 5, 4)]
    base, model, prefix, suffixes = trained_case(family, shapes, prefix_tokens)
    packed = pack(prefix, suffixes, IMAGE, PAD, torch.device("cpu"))
    with torch.no_grad():
        rows = model(**pad(prefix, suffixes, IMAGE, PAD, torch.device("cpu")), use_cache=False).logits[:, -1]
        found = answer_logits(base, packed.row)
    for n in NUMBERS:
        tokens = letter_tokens(lambda text: [20 + ord(text[-1]) % 40], n)
        ours, mass = option_log_probabilities(found, tokens)
        plain_p = rows[:, torch.tensor(tokens.spellings)].logsumexp(1)
        assert ours.shape == (4, n)
        assert torch.allclose(ours, plain_p.log_softmax(1), atol=1e-5)
        assert torch.allclose(mass, plain_p.logsumexp(1) - rows.logsumexp(1), atol=1e-5)


def test_a_question_of_four_has_the_same_bits_beside_questions_of_other_numbers(
    encoder: Encoder, questions: list[Question]
) -> None:
    four = questions[:4]
    others = with_options(questions[4:8], NUMBERS)
    alone, beside = score(encoder, four, 8), score(encoder, [*others, *four], 8)
    assert beside[4:] == alone
    assert [len(p.p) for p in beside[:4]] == list(NUMBERS)


@pytest.mark.parametrize("n", NUMBERS)
def test_cyclic_orders_average_a_prior_of_the_letters_out(n: int) -> None:
    worth = torch.linspace(0, 1.5, n).double()
    prior = torch.linspace(1, 3, n).double().log_softmax(0)
    by_letter = torch.stack([(prior + worth[list(order)]).log_softmax(0) for order in cyclic(n)])[None]
    assert torch.allclose(cyclic_average(by_letter)[0], worth.log_softmax(0))
    assert torch.allclose(letter_prior(by_letter), prior.exp())
    assert to_options(by_letter).shape == (1, n, n)


@pytest.mark.parametrize("readout", ["cyclic", "pride", "batch_calibration", "contextual"])
def test_questions_of_unlike_numbers_are_read_as_each_number_alone(
    readout: str, encoder: Encoder, questions: list[Question], settings: Make
) -> None:
    inference = settings(f"inference={readout}").inference
    asked = with_options(questions[:12], (3, 5))
    found = read_letters(encoder, asked, 8, inference)
    for start, n in enumerate((3, 5)):
        assert found[start::2] == read_letters(encoder, asked[start::2], 8, inference)
        assert all(len(p.p) == n for p in found[start::2])


def test_the_choice_loss_of_a_mixed_batch_is_the_sum_over_its_questions(
    encoder: Encoder, questions: list[Question]
) -> None:
    asked = with_options(questions[:5], (2, 4, 6))
    orders = [tuple(reversed(range(len(q.choices)))) for q in asked]
    batch, letters = encoder.batch(asked, orders), encoder.base.letters
    logits = letter_logits(encoder.base, batch)
    alone = [
        choice_loss(logits[i : i + 1], batch.targets[i : i + 1], letters[n]).item()
        for i, n in enumerate(batch.options)
    ]
    assert batch_loss("choice_ce", logits, batch, letters).item() == pytest.approx(sum(alone), rel=1e-5)
    gold = [n - 1 - LETTERS.index(str(q.answer)) for q, n in zip(asked, batch.options, strict=True)]
    assert batch.targets.tolist() == gold


def test_a_tokenizer_without_a_letter_refuses_only_the_questions_that_need_it() -> None:
    letters = Letters(lambda text: [1, 2] if text.strip().lower() == "e" else [ord(text[-1])])
    assert len(letters[4].answer) == 4
    with pytest.raises(UserError, match=r"does not write a, b, c, d, e as single, distinct tokens"):
        letters[5]
    assert letter_tokens(lambda text: [ord(text[-1])], 6).answer == tuple(map(ord, "abcdef"))


def test_only_letters_of_the_question_are_read_from_a_text() -> None:
    assert (parse_letter("(e)", 4), parse_letter("(e)", 5), parse_letter("c", 2)) == (None, "e", None)
    assert (final_letter("Answer: f", 6), final_letter("Answer: f", 5)) == ("f", None)


def test_guessing_is_the_mean_over_questions() -> None:
    found = guessing([2, 4, 4])
    assert found.accuracy == pytest.approx((0.5 + 0.25 + 0.25) / 3)
    assert found.options is None
    assert found.nll == pytest.approx((math.log(2) + 2 * math.log(4)) / 3)
    assert guessing([3, 3]).options == 3


def test_scores_know_the_chance_of_their_own_numbers_of_options() -> None:
    rows = [Prediction(f"q{n}", "a", (1 / n,) * n, 1.0, "a") for n in (2, 6)]
    assert guessing_of(rows).accuracy == pytest.approx((1 / 2 + 1 / 6) / 2)


def test_every_order_of_six_options_is_asked(monkeypatch: pytest.MonkeyPatch, settings: Make) -> None:
    asked: list[int] = []

    def scored(encoder: object, questions: Sequence[object], batch: int, orders: Sequence[object]) -> None:
        asked.append(len(orders))
        raise InterruptedError

    monkeypatch.setattr("vqa.answer.readout.option_scores", scored)
    six = Question("q", None, "", "?", ("1", "2", "3", "4", "5", "6"), "a")
    with pytest.raises(InterruptedError):
        read_letters(None, [six], 1, settings("inference=cyclic").inference)  # type: ignore[arg-type]
    assert asked == [6]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["prompt=fewshot_ko"],
            r"prompt.n_options says 4 options .* question 'train_\d+' has 3: use a prompt",
        ),
        (["prompt.user='{question} {a} {b} {c} {d}'"], r"prompt.user names 4 options \(a, b, c, d\), but"),
        (
            ["adapt=tent"],
            r"adapt.method must be none where questions have unlike numbers of options \(3 and 4\)",
        ),
        (["inference=pride"], r"inference.debias=pride estimates .* at least 20 questions, but 1 of 5"),
        (
            ["inference=batch_calibration"],
            r"inference.calibration=batch estimates .* 1 of 5 questions have 3",
        ),
    ],
)
def test_what_does_not_suit_the_numbers_is_refused_by_name(
    overrides: list[str], message: str, settings: Make, questions: list[Question]
) -> None:
    asked = [*questions[:4], *with_options(questions[4:5], (3,))]
    refuse_options(settings(), [asked])
    with pytest.raises(UserError, match=message):
        refuse_options(settings(*overrides), [asked])


def test_a_question_needs_two_options_and_an_answer_among_them() -> None:
    with pytest.raises(ValueError, match="must be 2 to 6 texts"):
        Question("q", None, "", "what?", ("one",))
    with pytest.raises(ValueError, match="answer of question 'q' must be a or b, got 'c'"):
        Question("q", None, "", "what?", ("one", "two"), "c")
