"""The option letters as tokens: which ids spell a, b, c, d, and their probabilities."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vqa.errors import UserError
from vqa.machine.device import to_device
from vqa.question import LETTERS

# How a model may write the letter x. A spelling counts only when it is one token for all four letters:
# otherwise a letter that happens to have more spellings would collect more probability.
SPELLINGS: dict[str, Callable[[str], str]] = {
    "a": lambda x: x,
    " a": lambda x: f" {x}",
    "A": lambda x: x.upper(),
    " A": lambda x: f" {x.upper()}",
}


@dataclass(frozen=True)
class LetterTokens:
    """Token ids of the letters.

    Args:
        answer: The ids of a, b, c, d that training teaches.
        spellings: All counted spellings, each the ids of a, b, c, d; the first one is `answer`.
    """

    answer: tuple[int, ...]
    spellings: tuple[tuple[int, ...], ...]


def letter_tokens(encode: Callable[[str], list[int]]) -> LetterTokens:
    """Find the spellings that are single, distinct tokens for all four letters.

    Args:
        encode: Text to token ids, without special tokens.

    Raises:
        UserError: The plain letters are not single tokens, so this tokenizer cannot be used.
    """
    found: list[tuple[int, ...]] = []
    for name, spell in SPELLINGS.items():
        ids = [encode(spell(letter)) for letter in LETTERS]
        single = tuple(tokens[0] for tokens in ids if len(tokens) == 1)
        if len(set(single)) == len(LETTERS):
            found.append(single)
        elif name == "a":
            raise UserError(
                f"model: its tokenizer does not write a, b, c, d as single, distinct tokens (got {ids}); "
                "choose another model"
            )
    return LetterTokens(found[0], tuple(found))


def option_log_probabilities(logits: torch.Tensor, tokens: LetterTokens) -> tuple[torch.Tensor, torch.Tensor]:
    """Log probability of each option, and of naming any option at all.

    Args:
        logits: (B, V), at the first answer position.
        tokens: Which ids count for which letter.

    Returns:
        (B, C) log probabilities that add up to 1 over the four options, and (B,) the log of the probability
        mass that the whole vocabulary gives to them ("option mass").
    """
    ids = to_device(torch.tensor(tokens.spellings), logits.device)  # (spellings, C)
    logits = logits.float()
    per_letter = torch.logsumexp(logits[:, ids], dim=1)  # (B, C), summed over spellings
    mass = torch.logsumexp(per_letter, dim=1) - torch.logsumexp(logits, dim=1)
    return torch.log_softmax(per_letter, dim=1), mass
