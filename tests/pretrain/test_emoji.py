"""Pre-training on emoji: what is shown, what is asked, what stays held out."""

from collections import Counter
from random import Random

import numpy as np

from pretrain.emoji import ask_emoji, draw_emoji, emoji_caption


def test_the_same_seed_gives_the_same_picture() -> None:
    first, again = draw_emoji(Random(3)), draw_emoji(Random(3))
    assert np.array_equal(first.image, again.image)
    assert first.image.shape == (64, 64, 3)
    assert first.shown == again.shown


def test_the_answer_is_in_the_picture_and_no_other_option_is() -> None:
    places: Counter[int] = Counter()
    for seed in range(400):
        random = Random(seed)
        scene = draw_emoji(random)
        asked = ask_emoji(random, scene)
        shown = {thing.korean for thing, _ in scene.shown}
        kinds = {thing.category for thing, _ in scene.shown}
        assert len({option.korean for option in asked.options}) == 4
        assert asked.answer.korean in shown | kinds
        if asked.answer.korean in shown:
            assert shown & {option.korean for option in asked.options} == {asked.answer.korean}
        places[asked.options.index(asked.answer)] += 1
    assert min(places.values()) > 70  # every place a quarter of the time


def test_what_is_absent_is_never_asked() -> None:
    random = Random(0)
    for _ in range(300):
        asked = ask_emoji(random, draw_emoji(random))
        assert "not" not in asked.english.split()
        assert not any(word in asked.korean for word in ("없는", "않은", "아닌"))


def test_a_caption_names_things_row_by_row() -> None:
    scene = next(s for s in map(draw_emoji, map(Random, range(50))) if len(s.shown) == 3)
    names = emoji_caption(scene, korean=True).split(", ")
    assert names == [thing.korean for thing, _ in sorted(scene.shown, key=lambda place: place[1] or 0)]
