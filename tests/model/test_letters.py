"""Letter tokens and their probabilities."""

import math

import pytest
import torch

from vqa.errors import UserError
from vqa.model.letters import LetterTokens, letter_tokens, option_log_probabilities

# single-token spellings in the Qwen vocabulary: a-d 64-67, A-D 32-35, " a".. , " A"..
QWEN = {
    **{letter: 64 + i for i, letter in enumerate("abcd")},
    **{letter: 32 + i for i, letter in enumerate("ABCD")},
    **dict(zip((" a", " b", " c", " d"), (264, 293, 272, 294), strict=True)),
    **dict(zip((" A", " B", " C", " D"), (362, 425, 356, 422), strict=True)),
}


def test_qwen_counts_four_spellings_and_teaches_the_plain_letters() -> None:
    found = letter_tokens(lambda text: [QWEN[text]], 4)
    assert found.answer == (64, 65, 66, 67)
    assert set(found.spellings) == {
        (64, 65, 66, 67),
        (264, 293, 272, 294),
        (32, 33, 34, 35),
        (362, 425, 356, 422),
    }


def test_a_spelling_that_is_not_one_token_for_all_four_letters_does_not_count() -> None:
    found = letter_tokens(lambda text: [1, 2] if text == " b" else [QWEN[text]], 4)
    assert (264, 293, 272, 294) not in found.spellings
    assert len(found.spellings) == 3


def test_letters_that_are_not_single_tokens_are_refused() -> None:
    with pytest.raises(UserError, match="does not write a, b, c, d as single, distinct tokens"):
        letter_tokens(lambda text: [1, 2], 4)


def test_probability_is_summed_over_spellings_and_the_option_mass_reported() -> None:
    tokens = LetterTokens((0, 1, 2, 3), ((0, 1, 2, 3), (4, 5, 6, 7)))
    p = torch.tensor([0.20, 0.10, 0.05, 0.05, 0.20, 0.05, 0.05, 0.10, 0.20])  # the last token is no letter
    log_p, log_mass = option_log_probabilities(p.log()[None], tokens)
    assert log_p.exp()[0].tolist() == pytest.approx([0.5, 0.1875, 0.125, 0.1875])  # (0.20 + 0.20) / 0.80, ...
    assert math.exp(log_mass.item()) == pytest.approx(0.8)
