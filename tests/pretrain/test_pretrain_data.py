"""What the tiny model is pre-trained on: pictures, questions, tokens, batches."""

from collections import Counter
from collections.abc import Iterator
from random import Random

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from pretrain.batches import GeneratedBatches
from pretrain.examples import EARLY_MIX, LETTERS, MIX, TaskMix, make_example
from pretrain.questions import KINDS, Asked, ask, with_distractors
from pretrain.scenes import draw_scene, mix_color
from pretrain.tokenizer import IMAGE_PAD, LineEncoder, token_id, train_tokenizer
from pretrain.words import (
    ALL_WORDS,
    COLORS,
    HELD_OUT,
    NO,
    PROMPT_SENTENCES,
    READ_ONLY,
    SYSTEM_LINES,
    YES,
    Word,
)
from vqa.data.emoji_quiz import with_particle

OPTION_TASKS_ONLY = TaskMix(reading=0, captions=0, open=0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(examples=3_000, seed=0)


def questions(seeds: range) -> Iterator[Asked]:
    for seed in seeds:
        yield ask(Random(seed), draw_scene(Random(seed)))


def test_the_same_seed_gives_the_same_picture_and_another_seed_another_one() -> None:
    first, again, other = draw_scene(Random(3)), draw_scene(Random(3)), draw_scene(Random(4))
    assert np.array_equal(first.image, again.image)
    assert first.things == again.things
    assert not np.array_equal(first.image, other.image)


def test_a_picture_is_64_by_64_rgb_with_one_to_four_things_inside() -> None:
    counts = set()
    for seed in range(100):
        scene = draw_scene(Random(seed))
        assert scene.image.shape == (64, 64, 3)
        assert scene.image.dtype == np.uint8
        assert all(0 < thing.x < 64 and 0 < thing.y < 64 for thing in scene.things)
        counts.add(len(scene.things))
    assert counts == {1, 2, 3, 4}


@pytest.mark.parametrize("color", COLORS)
def test_every_colour_stays_within_bytes(color: Word) -> None:
    shades = [mix_color(Random(seed), color) for seed in range(50)]
    assert all(0 <= channel <= 255 for shade in shades for channel in shade)


def test_the_answer_stands_exactly_once_among_four_different_options() -> None:
    for asked in questions(range(600)):
        assert len({word.english for word in asked.options}) == 4
        assert len({word.korean for word in asked.options}) == 4
        assert asked.options.count(asked.answer) == 1


def test_held_out_words_never_name_a_picture_and_yes_no_is_never_negated() -> None:
    for asked in questions(range(1500)):
        assert asked.answer not in READ_ONLY
        asked_for = asked.english.split() + asked.korean.split()
        assert not any(word.english in asked_for or word.korean in asked_for for word in HELD_OUT)
        if asked.answer.english in ("yes", "no"):
            assert not {"not", "no", "isn't"} & set(asked.english.replace("?", "").split())
            assert "없" not in asked.korean


def test_every_kind_of_question_gets_asked() -> None:
    kinds = {kind.__name__ for kind in KINDS}
    asked = set()
    for seed in range(300):
        random = Random(seed)
        scene = draw_scene(random)
        asked |= {kind.__name__ for kind in KINDS if kind(random, scene, scene.things[0])}
    assert asked == kinds


def test_answers_are_spread_over_the_letters() -> None:
    letters = [make_example(Random(s), draw_scene(Random(s)), OPTION_TASKS_ONLY).answer for s in range(800)]
    for letter in LETTERS:
        assert 0.19 < letters.count(letter) / len(letters) < 0.31  # 0.25, four standard errors


def test_distractors_are_of_the_answers_own_kind_first() -> None:
    options = with_distractors(Random(0), COLORS[0], COLORS)
    assert set(options) <= set(COLORS)
    assert set(with_distractors(Random(0), COLORS[0], COLORS[:2])) >= set(COLORS[:2])


@pytest.mark.parametrize(("noun", "topic"), [("원", "원은"), ("고리", "고리는"), ("달", "달은")])
def test_the_korean_topic_particle_follows_the_last_syllable(noun: str, topic: str) -> None:
    assert with_particle(noun, "은는") == topic


def test_no_two_words_read_the_same() -> None:
    assert len({w.english for w in ALL_WORDS}) == len({w.korean for w in ALL_WORDS}) == len(ALL_WORDS)


@pytest.mark.parametrize("letter", LETTERS)
@pytest.mark.parametrize("frame", ["({}) red", "{}) red", "{}. red", "{}: red", "{}", "assistant\n{}"])
def test_an_options_letter_is_the_same_token_as_the_answer(
    tokenizer: Tokenizer, letter: str, frame: str
) -> None:
    answer = tokenizer.encode(letter).ids
    assert len(answer) == 1
    assert answer[0] in tokenizer.encode(frame.format(letter)).ids


def test_encoding_line_by_line_is_exact(tokenizer: Tokenizer) -> None:
    lines = LineEncoder(tokenizer)
    for seed in range(300):
        prompt, answer = make_example(Random(seed), draw_scene(Random(seed)), EARLY_MIX)
        for text in (prompt, answer):
            assert lines.encode(text) == tokenizer.encode(text).ids


def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer) -> None:
    text = "Ünïcode 漢字 쀍 🙂 (a) 12\n\n  x"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_quiz_prompts_stay_short_in_tokens(tokenizer: Tokenizer) -> None:
    text = "\n".join((*PROMPT_SENTENCES, *SYSTEM_LINES))
    # bytes alone would be 1.7 tokens a character: a Korean syllable is three bytes
    assert len(tokenizer.encode(text).ids) < 0.5 * len(text)


def test_the_same_seed_gives_the_same_tokenizer(tokenizer: Tokenizer) -> None:
    assert train_tokenizer(examples=3_000, seed=0).to_str() == tokenizer.to_str()


def test_an_unknown_token_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(KeyError, match="token must be one of the vocabulary, got 'nonesuch'"):
        token_id(tokenizer, "nonesuch")


def test_a_batch_depends_on_seed_and_step_alone(tokenizer: Tokenizer) -> None:
    def make(seed: int) -> GeneratedBatches:
        return GeneratedBatches(tokenizer, steps=9, scenes=2, questions=3, seed=seed)

    used = make(0)
    used[0]
    for one, other in zip(used[7], make(0)[7], strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(used[7].images, make(1)[7].images)
    assert not torch.equal(used[7].images, used[6].images)


def test_labels_are_the_tokens_after_their_positions(tokenizer: Tokenizer) -> None:
    batch = GeneratedBatches(tokenizer, steps=1, scenes=8, questions=8, seed=0)[0]
    following = batch.ids.gather(1, batch.positions.long() + 1)
    answered = batch.labels >= 0
    assert torch.equal(batch.labels[answered], following[answered])
    assert answered[:, 0].all()
    assert ((batch.ids == token_id(tokenizer, IMAGE_PAD)).sum(1) == 16).all()


def test_a_tokenizer_too_poor_for_the_length_is_refused(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    monkeypatch.setattr("pretrain.batches.LENGTH", 20)
    with pytest.raises(
        RuntimeError, match=r"20 examples in a row were longer than 20 tokens: .* raise --corpus"
    ):
        GeneratedBatches(tokenizer, steps=1, scenes=1, questions=1, seed=0)[0]


def test_generated_tasks_never_lack_an_answer() -> None:
    examples = [make_example(Random(seed), draw_scene(Random(seed)), MIX) for seed in range(300)]
    assert all(example.answer for example in examples)


def test_the_place_of_a_wrong_option_tells_nothing_about_the_answer() -> None:
    # with only the answer's place drawn, "no" stood in front of the fillers whenever the answer was "yes",
    # and half of the answers followed from the order alone
    places: Counter[tuple[int, int]] = Counter()
    for seed in range(6000):
        options = with_distractors(Random(seed), YES, (YES, NO))
        places[options.index(YES), options.index(NO)] += 1
    assert len(places) == 12
    assert all(400 < count < 600 for count in places.values())  # 500 each, +-4.7 standard deviations
