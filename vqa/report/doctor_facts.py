"""What data look like before training: balance, twins, hints, sizes, lengths, a floor without pictures."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vqa.config.settings import Settings
from vqa.data.image import ImageError, fit_image, load_image, seen_size, tower_size
from vqa.model.families.family import Family
from vqa.model.generic_prompt import PromptWriter
from vqa.model.prompt import as_written, render, token_ids
from vqa.model.vision.generic_pictures import budget_arguments, processed
from vqa.progress import progress
from vqa.question import LETTERS, Question, by_options, letters_of, picture_groups
from vqa.report.facts import stored_size
from vqa.results.uncertainty import picture_codes, share_interval

HASH_SIDE = 8
NEAR_BITS = 4  # of 64: a picture saved again differs in 0 to 2 bits, unrelated ones in about 32
MOST_HASHED = 6000  # pictures compared with each other: 18 million pairs, seconds
FOLDS = 5
MOST_LEARNED = 10_000  # questions of the learner without pictures: its interval is then 1 % wide
MOST_MEASURED, LONGEST = 2000, 50  # questions whose tokens are counted: evenly spread ones, and the longest
MOST_PROCESSED = 200  # pictures given to a processor: seconds
FLAT = 3.0  # mean step of brightness below which a picture has no structure to compare (0..255)


@dataclass(frozen=True)
class Twins:
    """Pictures that are the same, or nearly: the pairs, each as two (part, id)."""

    pairs: list[tuple[tuple[str, str], tuple[str, str]]]

    @property
    def across(self) -> list[tuple[tuple[str, str], tuple[str, str]]]:
        """Pairs between two parts: what is learned from one leaks into the score of the other."""
        return [pair for pair in self.pairs if pair[0][0] != pair[1][0]]


def letter_balance(questions: Sequence[Question]) -> dict[str, int]:
    """How often each letter is the right one."""
    counts = Counter(q.answer for q in questions)
    return {
        letter: counts[letter] for letter in letters_of(max((len(q.choices) for q in questions), default=0))
    }


def option_numbers(questions: Sequence[Question]) -> dict[int, int]:
    """How many questions have each number of options, the smallest number first."""
    return {n: len(places) for n, places in by_options(len(q.choices) for q in questions).items()}


def exact_twins(parts: Mapping[str, Sequence[Question]]) -> Twins:
    """Pairs of questions on pictures of the same bytes; each with the first that has the picture."""
    first: dict[str, tuple[str, str]] = {}
    pairs = []
    for part, questions in parts.items():
        for q in questions:
            own = part, q.id
            before = [first.setdefault(digest, own) for digest in q.pictures_sha256.split()]
            pairs += [(other, own) for other in dict.fromkeys(before) if other != own]
    return Twins(pairs)


def near_twins(parts: Mapping[str, Sequence[Question]]) -> Twins:
    """Pairs of different files that show nearly the same: scaled, recompressed, slightly cropped.

    Ours rather than imagehash: the hash is four lines, and imagehash has neither the comparison of all pairs
    nor a rule for pictures without structure.

    Source: difference hash, N. Krawetz (2013), "Kind of like that": signs of 8 x 8 horizontal steps.
    """
    unique: dict[str, tuple[str, str, Path]] = {}
    for part, questions in parts.items():
        for q in questions:
            for picture in q.pictures:
                unique.setdefault(picture.sha256, (part, q.id, picture.path))
    entries = list(unique.values())[:MOST_HASHED]
    with ThreadPoolExecutor(4) as pool:
        hashes = []
        for value in pool.map(lambda entry: difference_hash(entry[2]), entries):
            hashes.append(value)
            progress("comparing pictures", len(hashes), len(entries))
    kept = [(entry, value) for entry, value in zip(entries, hashes, strict=True) if value is not None]
    values = np.array([value for _, value in kept], dtype=np.uint64)
    pairs = []
    for i in range(len(values) - 1):
        for j in np.flatnonzero(np.bitwise_count(values[i + 1 :] ^ values[i]) <= NEAR_BITS) + i + 1:
            a, b = kept[i][0][:2], kept[int(j)][0][:2]
            pairs += [(a, b)] if a != b else []  # a question may show nearly the same twice
    return Twins(pairs)


def difference_hash(path: Path) -> int | None:
    """64 bits of a picture's coarse structure; None where it has none, or cannot be read."""
    try:
        small = load_image(path).convert("L").resize((HASH_SIDE + 1, HASH_SIDE))
    except ImageError:
        return None
    pixels = np.asarray(small, dtype=np.int16)
    steps = np.diff(pixels, axis=1)
    if np.abs(steps).mean() < FLAT:
        return None
    return int("".join("1" if step else "0" for step in (steps > 0).ravel()), 2)


def equal_options(questions: Sequence[Question]) -> list[str]:
    """Ids of questions with two equal options."""
    return [q.id for q in questions if len({choice.strip() for choice in q.choices}) < len(q.choices)]


def contradictions(questions: Sequence[Question]) -> list[tuple[str, str]]:
    """Pairs of ids that ask the same of the same pictures, with other right answers."""
    asked: dict[tuple[str, str], list[Question]] = defaultdict(list)
    for q in questions:
        if q.answer and q.pictures_sha256:
            asked[q.pictures_sha256, q.text.strip()].append(q)
    return [
        (same[0].id, other.id)
        for same in asked.values()
        for other in same[1:]
        if _gold(other) != _gold(same[0])
    ]


def hinted(questions: Sequence[Question]) -> list[str]:
    """Ids of questions whose text holds the right option and none of the others."""
    found = []
    for q in questions:
        inside = [choice.strip().lower() in q.text.lower() for choice in q.choices]
        if q.answer and sum(inside) == 1 and inside[LETTERS.index(q.answer)]:
            found.append(q.id)
    return found


def longest_is_right(questions: Sequence[Question]) -> float | None:
    """Share of labelled questions whose right option is the first of the longest ones; chance gives 1/n."""
    labelled = [q for q in questions if q.answer]
    if not labelled:
        return None
    longest = [
        max(range(len(q.choices)), key=[len(choice) for choice in q.choices].__getitem__)
        == LETTERS.index(str(q.answer))
        for q in labelled
    ]
    return sum(longest) / len(longest)


def text_floor(questions: Sequence[Question], seed: int) -> dict[str, Any] | None:
    """Accuracy of a small learner that never sees a picture: what words alone give away.

    Each option is scored from its words, their company in the question, its letter and its length; five folds
    by picture. A fine-tuned model that scores no better does not look.

    Returns:
        `accuracy`, `low`, `high` (95 % Wilson, over pictures) and `n`; None with fewer than 50 labelled
        questions.
    """
    from sklearn.feature_extraction import FeatureHasher
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    labelled = evenly([q for q in questions if q.answer], MOST_LEARNED)
    digests = [q.pictures_sha256 for q in labelled]
    named = zip(labelled, picture_groups(digests), strict=True)
    groups = [group if q.pictures_sha256 else q.id for q, group in named]
    if len(labelled) < 50 or len(set(groups)) < FOLDS:
        return None
    features = FeatureHasher(2**16, input_type="string").transform(
        [_words(q, i) for q in labelled for i in range(len(q.choices))]
    )
    right = np.array([letter == q.answer for q in labelled for letter in q.letters])
    ends = np.cumsum([len(q.choices) for q in labelled])
    own = [np.arange(end - len(q.choices), end) for end, q in zip(ends, labelled, strict=True)]
    correct, scores = np.zeros(len(labelled), dtype=bool), np.zeros(len(right))
    folds = GroupKFold(FOLDS, shuffle=True, random_state=seed)
    for train, test in folds.split(labelled, groups=groups):
        rows = np.concatenate([own[place] for place in train])
        learner = LogisticRegression(C=1.0, max_iter=200).fit(features[rows], right[rows])
        asked = np.concatenate([own[place] for place in test])
        scores[asked] = learner.decision_function(features[asked])
        correct[test] = [right[own[place]][scores[own[place]].argmax()] for place in test]
    low, high = share_interval(correct, picture_codes(digests))
    return {"accuracy": float(correct.mean()), "low": low, "high": high, "n": len(labelled)}


def evenly(questions: Sequence[Question], most: int) -> list[Question]:
    """At most so many of the questions, evenly spread over them; all where there are fewer."""
    if len(questions) <= most:
        return list(questions)
    return [questions[int(index)] for index in np.linspace(0, len(questions) - 1, most)]


def _measured(questions: Sequence[Question]) -> list[Question]:
    """Questions that stand for all in a table of sizes: evenly spread ones, and those of most characters."""
    if len(questions) <= MOST_MEASURED:
        return list(questions)
    longest = sorted(questions, key=lambda q: -len(q.text) - sum(map(len, q.choices)))[:LONGEST]
    return [*evenly(questions, MOST_MEASURED), *longest]


def _words(q: Question, index: int) -> list[str]:
    option = q.choices[index].strip().lower()
    words = q.text.lower().split()
    rank = sorted(range(len(q.choices)), key=lambda i: len(q.choices[i])).index(index)
    pairs = [f"{word} > {option}" for word in words]
    return [
        f"option {option}",
        f"letter {index}",
        f"length {rank}",
        f"inside {option in q.text.lower()}",
        *pairs,
    ]


def _gold(question: Question) -> str:
    return question.choices[LETTERS.index(str(question.answer))]


def sizes(settings: Settings, questions: Sequence[Question], config: Any, tokenizer: Any) -> dict[str, Any]:
    """Picture sizes, visual tokens, and lengths of whole prompts in tokens: smallest, median, 95 %, largest.

    Where a question has several pictures, `all visual tokens` are those of all pictures of each question.

    Args:
        settings: The run.
        questions: Any; of many, evenly spread ones and the longest are looked at.
        config: The model's configuration.
        tokenizer: Its tokenizer.
    """
    side = config.vision_config.patch_size * config.vision_config.spatial_merge_size
    budget = settings.image.min_visual_tokens, settings.image.max_visual_tokens
    found = _Measured()
    for q in _measured(questions):
        rendered = render(tokenizer, settings.prompt, q, as_written(q))
        found.text.append(len(token_ids(tokenizer, rendered.prefix + rendered.suffix)))
        of_q = []
        for size in filter(None, (stored_size(picture.path) for picture in q.pictures)):
            square = settings.image.size
            width, height = size if square is None else (square, square)
            wide, tall = tower_size(*seen_size(width, height), side, *budget)
            of_q.append((*size, tall * wide // side**2))
        found.pictures.append(of_q)
    return found.table()


@dataclass(frozen=True)
class _Measured:
    """Text tokens of each question; width, height and visual tokens of each of its pictures."""

    text: list[float] = field(default_factory=list)
    pictures: list[list[tuple[int, int, int]]] = field(default_factory=list)

    def table(self) -> dict[str, Any]:
        """Smallest, median, 95 % and largest of each."""
        single = [picture for of_q in self.pictures for picture in of_q]
        columns: dict[str, list[float]] = {
            name: [picture[at] for picture in single]
            for at, name in enumerate(("width", "height", "visual tokens"))
        }
        if any(len(of_q) > 1 for of_q in self.pictures):
            columns["all visual tokens"] = [sum(p[2] for p in of_q) for of_q in self.pictures]
        columns["text tokens"] = self.text
        return {
            name: np.percentile(values, [0, 50, 95, 100]).tolist()
            for name, values in columns.items()
            if values
        }


def sizes_by_processor(
    settings: Settings, questions: Sequence[Question], processor: Any, family: Family
) -> dict[str, Any]:
    """The same numbers for a model on the generic path: its own processor is asked, for some pictures.

    Args:
        settings: The run.
        questions: Any; evenly spread ones are looked at.
        processor: The model's.
        family: Its family.
    """
    found = _Measured()
    writer = PromptWriter(processor, processor.tokenizer, family.template, [])
    arguments = budget_arguments(processor, family, settings.image)
    for q in questions[:: max(1, len(questions) // MOST_PROCESSED)]:
        found.text.append(len(writer.ids(settings.prompt, q, as_written(q), ())))
        of_q = []
        for one in q.pictures:
            try:
                whole = load_image(one.path)
            except ImageError:
                continue
            picture = fit_image(whole, settings.image.mode, settings.image.size)
            placeholder = processed(processor, picture, arguments).placeholder
            tokens = processor.tokenizer(placeholder, add_special_tokens=False)["input_ids"]
            of_q.append((whole.width, whole.height, len(tokens)))
        found.pictures.append(of_q)
    return found.table()
