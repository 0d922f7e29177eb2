"""Training batches made on the fly, the same for every number of worker processes."""

from random import Random
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset

from pretrain.emoji import EmojiScene, draw_any
from pretrain.examples import EARLY_MIX, MIX, TaskMix, make_example
from pretrain.scenes import IMAGE_SIZE, Scene
from pretrain.tokenizer import END, PAD, LineEncoder, token_id

LENGTH = 96  # tokens per text; 0.8 % of the examples are longer and are drawn again
MAX_ANSWER = 10  # tokens, the end token included; longer captions are cut
EARLY_STEPS = 1_500
IGNORED = -100


class Batch(NamedTuple):
    """One step's data. B texts of T tokens on N pictures, K answer positions.

    Args:
        ids: (B, T) int32, prompt and answer, padded on the right.
        images: (N, 64, 64, 3) uint8; text i belongs to picture i // (B / N).
        positions: (B, K) int32, where each answer token is predicted from; 0 beyond the answer.
        labels: (B, K) int32, the answer's tokens and the end token; -100 beyond.
    """

    ids: Tensor
    images: Tensor
    positions: Tensor
    labels: Tensor


class GeneratedBatches(Dataset[Batch]):
    """Batch i is a function of seed and i alone, whichever worker process makes it.

    Args:
        tokenizer: Turns examples into tokens.
        steps: How many batches there are.
        scenes: Pictures per batch.
        questions: Texts per picture.
        seed: Of everything generated.
    """

    def __init__(self, tokenizer: Tokenizer, steps: int, scenes: int, questions: int, seed: int) -> None:
        self.steps, self.scenes, self.questions, self.seed = steps, scenes, questions, seed
        self._lines = LineEncoder(tokenizer)
        self._pad = token_id(tokenizer, PAD)
        self._end = token_id(tokenizer, END)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        """Batch number `step`, counted from 0; the first 1,500 hold the early mix of tasks."""
        random = Random((self.seed << 32) + step)
        mix = EARLY_MIX if step < EARLY_STEPS else MIX
        size = self.scenes * self.questions
        images = np.empty((self.scenes, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        ids = np.full((size, LENGTH), self._pad, np.int32)
        positions = np.zeros((size, MAX_ANSWER), np.int32)
        labels = np.full((size, MAX_ANSWER), IGNORED, np.int32)
        for row in range(size):
            if row % self.questions == 0:
                scene = draw_any(random)
                images[row // self.questions] = scene.image
            prompt, answer = self._example(random, scene, mix)
            end, length = len(prompt), len(answer)
            ids[row, : end + length] = prompt + answer
            positions[row, :length] = range(end - 1, end - 1 + length)
            labels[row, :length] = answer
        return Batch(*map(torch.from_numpy, (ids, images, positions, labels)))

    def _example(
        self, random: Random, scene: Scene | EmojiScene, mix: TaskMix
    ) -> tuple[list[int], list[int]]:
        """Prompt and answer tokens that fit into `LENGTH`."""
        for _ in range(20):
            example = make_example(random, scene, mix)
            prompt = self._lines.encode(example.prompt)
            answer = [*self._lines.encode(example.answer), self._end][:MAX_ANSWER]
            if len(prompt) + len(answer) <= LENGTH:
                return prompt, answer
        raise RuntimeError(
            f"20 examples in a row were longer than {LENGTH} tokens: "
            "the tokenizer has seen too little text, raise --corpus"
        )
