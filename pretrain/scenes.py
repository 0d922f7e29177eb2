"""Procedural pictures: one to four coloured shapes on a plain ground, 64 x 64 pixels.

Nothing is read from disk. Shapes vary in size, place, turn and proportions, colours around their name's hue;
15 % of the shapes have a colour without a name; half of the pictures are noisy, a fifth shaded.
"""

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from pretrain.words import (
    ARROW,
    BAR,
    BLACK,
    BLUE,
    COLORS,
    CORNERS,
    CROSS,
    DIAMOND,
    GRAY,
    GREEN,
    HEXAGON,
    MOON,
    ORANGE,
    PINK,
    PURPLE,
    RED,
    RING,
    SHAPES,
    SQUARE,
    STAR,
    TRIANGLE,
    WHITE,
    YELLOW,
    Word,
)

IMAGE_SIZE = 64  # pixels: 8 x 8 patches of 8 pixels, 16 visual tokens after the 2 x 2 merge
MIDDLE = IMAGE_SIZE / 2

RGB = tuple[int, int, int]
Points = list[tuple[float, float]]

# low and high of hue (turns), saturation, value
HSV_RANGES: dict[Word, tuple[float, float, float, float, float, float]] = {
    RED: (-0.022, 0.018, 0.75, 1, 0.75, 1),
    ORANGE: (0.065, 0.10, 0.75, 1, 0.75, 1),
    YELLOW: (0.14, 0.175, 0.75, 1, 0.75, 1),
    GREEN: (0.27, 0.40, 0.75, 1, 0.5, 1),
    BLUE: (0.57, 0.68, 0.8, 1, 0.75, 1),
    PURPLE: (0.73, 0.80, 0.75, 1, 0.45, 0.85),
    PINK: (0.86, 0.94, 0.35, 0.65, 0.9, 1),
}
# low and high of the grey value, and how far each channel may stray from it
GREY_RANGES = {WHITE: (0.92, 1, 0.02), BLACK: (0.02, 0.07, 0.02), GRAY: (0.4, 0.62, 0.015)}

THINGS_CUMULATIVE = list(accumulate([0.5, 0.2, 0.18, 0.12]))  # share of pictures with 1, 2, 3, 4 things
NAMED_COLOR_SHARE = 0.85
MIN_COLOR_DISTANCE = 70  # RGB units between a thing and the ground, so that every thing can be seen


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape in a picture.

    Args:
        shape: Its name.
        color: Its colour's name, None for a colour that has no name here.
        rgb: The colour as drawn, 0..255.
        x: Centre, pixels from the left.
        y: Centre, pixels from the top.
        radius: Half its size, pixels.
    """

    shape: Word
    color: Word | None
    rgb: RGB
    x: float
    y: float
    radius: float

    @property
    def corner(self) -> Word:
        """The quarter of the picture that holds the centre."""
        return CORNERS[(self.x > MIDDLE) + 2 * (self.y > MIDDLE)]


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and everything that is true of it.

    Args:
        image: Shape (64, 64, 3), RGB.
        things: One to four shapes; with more than one, each in its own corner.
        background: The ground's colour name, None when it has none.
    """

    image: npt.NDArray[np.uint8]
    things: tuple[Thing, ...]
    background: Word | None


def draw_scene(random: Random) -> Scene:
    """Invents one picture; the same state of `random` gives the same picture."""
    background = random.choice(COLORS) if random.random() < 0.5 else None
    ground = mix_color(random, background)
    if background is None and random.random() < 0.3:  # a pale ground
        ground = (random.randint(200, 255), random.randint(200, 255), random.randint(200, 255))
    things = tuple(_thing(random, place, ground) for place in _places(random))
    scale = random.choice((2, 3))  # drawn larger, then shrunk: soft edges
    canvas = Image.new("RGB", (IMAGE_SIZE * scale, IMAGE_SIZE * scale), ground)
    pen = ImageDraw.Draw(canvas)
    for thing in things:
        _draw(random, pen, thing, ground, scale)
    return Scene(_photograph(random, canvas), things, background)


def mix_color(random: Random, name: Word | None) -> RGB:
    """A shade that people would call `name`, or any colour at all for None."""
    if name in GREY_RANGES:
        low, high, stray = GREY_RANGES[name]
        value = random.uniform(low, high)
        r, g, b = (min(1, value + random.uniform(-stray, stray)) for _ in range(3))
    elif name is None:
        r, g, b = colorsys.hsv_to_rgb(random.random(), random.random(), random.random())
    else:
        h0, h1, s0, s1, v0, v1 = HSV_RANGES[name]
        hue, saturation, value = random.uniform(h0, h1) % 1, random.uniform(s0, s1), random.uniform(v0, v1)
        r, g, b = colorsys.hsv_to_rgb(hue, saturation, value)
    return int(255 * r), int(255 * g), int(255 * b)


def _places(random: Random) -> list[tuple[float, float, float]]:
    """Centre and radius of each thing, in pixels."""
    count = random.choices((1, 2, 3, 4), cum_weights=THINGS_CUMULATIVE)[0]
    if count == 1:
        radius = random.uniform(5, 18)
        low, high = 0.8 * radius, IMAGE_SIZE - 0.8 * radius
        return [(random.uniform(low, high), random.uniform(low, high), radius)]
    return [
        (
            16 + 32 * (corner % 2) + random.uniform(-4, 4),
            16 + 32 * (corner // 2) + random.uniform(-4, 4),
            random.uniform(5, 12),
        )
        for corner in random.sample(range(4), count)
    ]


def _thing(random: Random, place: tuple[float, float, float], ground: RGB) -> Thing:
    color = random.choice(COLORS) if random.random() < NAMED_COLOR_SHARE else None
    rgb = mix_color(random, color)
    while math.dist(rgb, ground) <= MIN_COLOR_DISTANCE:
        color = random.choice(COLORS)
        rgb = mix_color(random, color)
    return Thing(random.choice(SHAPES), color, rgb, *place)


def _draw(random: Random, pen: ImageDraw.ImageDraw, thing: Thing, ground: RGB, scale: int) -> None:
    x, y, radius = thing.x * scale, thing.y * scale, thing.radius * scale
    if thing.shape in OUTLINES:
        outline, turn = OUTLINES[thing.shape](random), _turn(random, thing.shape)
        cos, sin = radius * math.cos(turn), radius * math.sin(turn)
        pen.polygon([(x + u * cos - v * sin, y + u * sin + v * cos) for u, v in outline], fill=thing.rgb)
        return
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=thing.rgb)
    if thing.shape is RING:
        hole = radius * random.uniform(0.45, 0.65)
        pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=ground)
    elif thing.shape is MOON:
        x, y = x + 0.55 * radius, y - 0.55 / 3 * radius
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ground)


def _turn(random: Random, shape: Word) -> float:
    """Radians: mostly a slight tilt, sometimes any; often none for shapes that usually stand straight."""
    turn = random.uniform(-0.25, 0.25) if random.random() < 0.6 else random.uniform(-math.pi, math.pi)
    if shape in (SQUARE, BAR, TRIANGLE) and random.random() < 0.5:
        turn = 0.0
    if shape is DIAMOND:
        turn *= 0.3  # a diamond on its side is a square to most people
    elif shape is CROSS:
        turn *= 0.5
    elif shape in (BAR, ARROW):
        turn += random.randrange(4) * math.pi / 2
    return turn


def _photograph(random: Random, canvas: Image.Image) -> npt.NDArray[np.uint8]:
    """Shrinks to 64 x 64; adds noise to half of the pictures and shading from top to bottom to a fifth."""
    if random.random() < 0.5:
        small = canvas.reduce(canvas.width // IMAGE_SIZE)
    else:
        small = canvas.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
    image = np.asarray(small)
    noisy, shaded = random.random() < 0.5, random.random() < 0.2
    if not noisy and not shaded:
        return image
    light = image.astype(np.int16)
    if noisy:
        grain = np.frombuffer(random.randbytes(image.size), np.int8).reshape(image.shape)
        light += grain // np.int8(11)  # -12..11
    if shaded:
        light += SHADE
    return np.clip(light, 0, 255).astype(np.uint8)


SHADE = np.linspace(-25, 25, IMAGE_SIZE).astype(np.int16)[:, None, None]


def _regular(corners: int, size: float = 1.0, inner: float | None = None) -> Points:
    """Corners of a regular polygon, or of a star whose inner corners lie at `inner` x size."""
    count = corners if inner is None else 2 * corners
    radii = (size, size if inner is None else inner * size)
    angles = [2 * math.pi * i / count for i in range(count)]
    return [(radii[i % 2] * math.sin(a), -radii[i % 2] * math.cos(a)) for i, a in enumerate(angles)]


def _bar(random: Random) -> Points:
    half = 1 / random.uniform(1.8, 3.2)
    return [(-1.05, -half), (1.05, -half), (1.05, half), (-1.05, half)]


def _cross(random: Random) -> Points:
    t = random.uniform(0.25, 0.38)
    right = [(t, -1.0), (t, -t), (1.0, -t), (1.0, t), (t, t), (t, 1.0)]
    return [*right, *((-u, v) for u, v in reversed(right))]


TRIANGLE_POINTS, HEXAGON_POINTS = _regular(3, 1.1), _regular(6)
SQUARE_POINTS: Points = [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
DIAMOND_POINTS: Points = [(0, -1.1), (0.65, 0), (0, 1.1), (-0.65, 0)]
ARROW_POINTS: Points = [(0, -1), (0.9, 0), (0.3, 0), (0.3, 1), (-0.3, 1), (-0.3, 0), (-0.9, 0)]

# corners around the centre for a radius of 1, y downwards; circle, ring and moon are made of ellipses instead
OUTLINES: dict[Word, Callable[[Random], Points]] = {
    SQUARE: lambda _: SQUARE_POINTS,
    TRIANGLE: lambda _: TRIANGLE_POINTS,
    DIAMOND: lambda _: DIAMOND_POINTS,
    HEXAGON: lambda _: HEXAGON_POINTS,
    ARROW: lambda _: ARROW_POINTS,
    BAR: _bar,
    CROSS: _cross,
    STAR: lambda random: _regular(5, 1.1, random.uniform(0.38, 0.5)),
}
