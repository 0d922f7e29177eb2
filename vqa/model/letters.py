"""The option letters as tokens: which ids spell a, b, c, ..., and their probabilities."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vqa.errors import UserError
from vqa.machine.device import to_device
from vqa.question import FEWEST, letters_of

# How a model may write the letter x. A spelling counts only when it is one token for all letters of
# a question: otherwise a letter that happens to have more spellings would collect more probability.
SPELLINGS: dict[str, Callable[[str], str]] = {
    "a": lambda x: x,
    " a": lambda x: f" {x}",
    "A": lambda x: x.upper(),
    " A": lambda x: f" {x.upper()}",
}


@dataclass(frozen=True)
class LetterTokens:
    """Token ids of the letters of a question with C options.

    Args:
        answer: (C,) the ids that training teaches.
        spellings: All counted spellings, each the ids of all C letters; the first one is `answer`.
    """

    answer: tuple[int, ...]
    spellings: tuple[tuple[int, ...], ...]


class Letters:
    """The tokens of the letters by the number of options, found when they are first asked for.

    Which spellings count depends on a question's own number of options alone: not on the others of its batch
    or file.

    Args:
        encode: Text to token ids, without special tokens.

    Raises:
        UserError: The tokenizer cannot write the letters of any question.
    """

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        self.encode = encode
        self.known: dict[int, LetterTokens] = {}
        self[FEWEST]  # a tokenizer without a and b is refused while the model is loaded

    def __getitem__(self, options: int) -> LetterTokens:
        """The tokens for that many options.

        Raises:
            UserError: The tokenizer does not write each of these letters as one token.
        """
        if options not in self.known:
            self.known[options] = letter_tokens(self.encode, options)
        return self.known[options]


def letter_tokens(encode: Callable[[str], list[int]], options: int) -> LetterTokens:
    """Find the spellings that are single, distinct tokens for all letters of so many options.

    Args:
        encode: Text to token ids, without special tokens.
        options: Number of options, 2 to 6.

    Raises:
        UserError: The plain letters are not single tokens, so this tokenizer cannot be used.
    """
    letters = letters_of(options)
    found: list[tuple[int, ...]] = []
    for name, spell in SPELLINGS.items():
        ids = [encode(spell(letter)) for letter in letters]
        single = tuple(tokens[0] for tokens in ids if len(tokens) == 1)
        if len(set(single)) == options:
            found.append(single)
        elif name == "a":
            raise UserError(
                f"model: its tokenizer does not write {', '.join(letters)} as single, distinct tokens "
                f"(got {ids}); choose another model"
            )
    return LetterTokens(found[0], tuple(found))


def option_log_probabilities(logits: torch.Tensor, tokens: LetterTokens) -> tuple[torch.Tensor, torch.Tensor]:
    """Log probability of each option, and of naming any option at all.

    Args:
        logits: (B, V), at the first answer position, of questions with C options each.
        tokens: Which ids count for which letter, for C options.

    Returns:
        (B, C) log probabilities that add up to 1 over the options, and (B,) the log of the probability
        mass that the whole vocabulary gives to them ("option mass").
    """
    ids = to_device(torch.tensor(tokens.spellings), logits.device)  # (spellings, C)
    logits = logits.float()
    per_letter = torch.logsumexp(logits[:, ids], dim=1)  # (B, C), summed over spellings
    mass = torch.logsumexp(per_letter, dim=1) - torch.logsumexp(logits, dim=1)
    return torch.log_softmax(per_letter, dim=1), mass
