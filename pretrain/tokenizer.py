"""The tiny model's own tokenizer, a byte-level BPE, and the processor files around it.

Any text can be written, byte by byte if need be; the prompt language of this project is short in tokens.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from pretrain.emoji import draw_any
from pretrain.examples import IMAGE, MIX, TaskMix, make_example
from pretrain.words import PROMPT_SENTENCES

PAD, END, IMAGE_PAD = "<|endoftext|>", "<|im_end|>", "<|image_pad|>"
SPECIAL_TOKENS = (PAD, "<|im_start|>", END, "<|vision_start|>", "<|vision_end|>", IMAGE_PAD, "<|video_pad|>")
MAX_VOCABULARY = 2816
CORPUS_MIX = TaskMix(reading=MIX.reading, captions=MIX.captions, open=MIX.open, korean=0.4)
PROMPT_SENTENCE_REPEATS = 200  # makes a rare prompt word as frequent as a rare word of the questions

# Like Qwen's pattern, except that punctuation always stands alone: the "a" of "(a)" is then the same token as
# the answer "a". Qwen's own pattern allows "(a" as one token.
SPLIT = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s*[\r\n]+|\s+(?!\S)|\s+"

# The turns of a chat, with a picture wherever a message has one.
CHAT_TEMPLATE = """\
{%- for message in messages -%}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for c in message['content'] %}\
{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": END,
    "pad_token": PAD,
    "padding_side": "left",
    "model_max_length": 4096,
    "clean_up_tokenization_spaces": False,
}
PREPROCESSOR_CONFIG = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "patch_size": 8,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "size": {
        "shortest_edge": 64 * 64,
        "longest_edge": 128 * 128,
    },  # pixels in all, despite the names
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def train_tokenizer(examples: int, seed: int) -> Tokenizer:
    """Learns the merges from generated prompts and from `PROMPT_SENTENCES`.

    Args:
        examples: How many generated prompts to learn from.
        seed: Of the generated prompts.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(examples, seed), trainer)
    return tokenizer


def _corpus(examples: int, seed: int) -> Iterator[str]:
    random = Random(seed)
    for _ in range(examples // 10):
        scene = draw_any(random)
        for _ in range(10):
            prompt, answer = make_example(random, scene, CORPUS_MIX)
            yield prompt.replace(IMAGE, "") + answer
    for _ in range(PROMPT_SENTENCE_REPEATS):
        yield from PROMPT_SENTENCES


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token.

    Raises:
        KeyError: `token` is not in the vocabulary.
    """
    id_: int | None = tokenizer.token_to_id(token)
    if id_ is None:
        raise KeyError(f"token must be one of the vocabulary, got {token!r}")
    return id_


def write_processor(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes what `from_pretrained` needs to turn a chat with a picture into tensors, all but the model."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    for name, content in (
        ("tokenizer_config.json", TOKENIZER_CONFIG),
        ("preprocessor_config.json", PREPROCESSOR_CONFIG),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


class LineEncoder:
    """Tokenizes line by line and remembers each line: prompts repeat their lines all the time.

    Exact, because `SPLIT` never joins a line break with what stands beside it, as long as no line is empty
    and none ends in a space.
    """

    def __init__(self, tokenizer: Tokenizer, max_lines: int = 60_000) -> None:
        self._tokenizer = tokenizer
        self._max_lines = max_lines
        self._lines: dict[str, list[int]] = {}
        self._break: list[int] = tokenizer.encode("\n").ids

    def encode(self, text: str) -> list[int]:
        """The token ids of `text`."""
        known, line_break = self._lines, self._break
        ids: list[int] = []
        for line in text.split("\n"):
            line_ids = known.get(line)
            if line_ids is None:
                line_ids = self._tokenizer.encode(line).ids
                if len(known) < self._max_lines:
                    known[line] = line_ids
            ids += line_ids
            ids += line_break
        del ids[len(ids) - len(line_break) :]
        return ids
