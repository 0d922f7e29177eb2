"""What training minimises: the answer's letter over the vocabulary, over the letters, or every token."""

import torch
import torch.nn.functional as F

from vqa.model.letters import Letters, LetterTokens, option_log_probabilities
from vqa.model.packing import PackedBatch
from vqa.question import by_options


def answer_loss(logits: torch.Tensor, targets: torch.Tensor, letters: LetterTokens) -> torch.Tensor:
    """Cross-entropy over the vocabulary at the answer letter, summed over questions.

    Args:
        logits: (B, V).
        targets: (B,) index of the gold letter.
        letters: Which token each letter is, for the largest number of options among the questions.
    """
    ids = torch.tensor(letters.answer, device=logits.device)
    return F.cross_entropy(logits.float(), ids[targets], reduction="sum")


def choice_loss(logits: torch.Tensor, targets: torch.Tensor, letters: LetterTokens) -> torch.Tensor:
    """Cross-entropy over the options, each summed over its spellings; summed over questions.

    It does not train the letters' share of the vocabulary's probability; `option_mass` reports that share.

    Args:
        logits: (B, V).
        targets: (B,) index of the gold letter.
        letters: Which tokens count for which letter, for the number of options that all questions have.
    """
    log_p, _ = option_log_probabilities(logits, letters)
    return F.nll_loss(log_p, targets, reduction="sum")


def conversation_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over every token of the conversations, summed: the contest baseline's loss.

    Prompt, question, answer and end of turn all count; padding and image placeholders do not. It spends most
    of its gradient on text that is the same in every question, and is here for comparison.

    Args:
        logits: (N, V) at the places before the tokens.
        labels: (N,) the tokens.
        weights: (N,) in how many conversations the token stands; a shared prefix is in all of them.
    """
    return F.cross_entropy(logits.float(), labels, reduction="none") @ weights


def batch_loss(loss: str, logits: torch.Tensor, batch: PackedBatch, letters: Letters) -> torch.Tensor:
    """The loss of one micro-batch, summed over questions, for "full" over the tokens of all conversations.

    An optimiser step divides by the sum over its micro-batches, so cutting a batch never changes the step.

    Args:
        loss: answer_only, choice_ce or full.
        logits: What `letter_logits` gave for the batch.
        batch: With the whole conversations in it for "full".
        letters: Which token each letter is, by the number of options.
    """
    if loss == "full":
        if batch.conversation is None:
            raise ValueError("loss=full needs a batch packed with conversation=True")
        return conversation_loss(logits, batch.conversation.labels, batch.conversation.weights)
    if loss == "answer_only":
        return answer_loss(logits, batch.targets, letters[max(batch.options)])
    groups = by_options(batch.options)
    if len(groups) == 1:
        return choice_loss(logits, batch.targets, letters[batch.options[0]])
    parts = [choice_loss(logits[rows], batch.targets[rows], letters[n]) for n, rows in groups.items()]
    return torch.stack(parts).sum()
