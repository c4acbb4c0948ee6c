"""Drawn JPEG pictures for sample events: cartoon faces and scenes, so that nobody's photo is shown.

Needs pillow (extra ``pictures``). Everything follows from the numbers handed in: the same look and
camera always give the same bytes with the same pillow.
"""

# ruff: noqa: S311  (drawings, not secrets)

from __future__ import annotations

import io
import random
from typing import NamedTuple, Tuple

from PIL import Image, ImageChops, ImageDraw

Colour = Tuple[int, int, int]
Box = Tuple[int, int, int, int]

SKINS = [(255, 219, 188), (241, 194, 150), (224, 172, 120), (188, 132, 92), (141, 92, 62)]
HAIRS = [(28, 24, 24), (62, 42, 30), (110, 72, 40), (196, 158, 92), (150, 150, 156), (120, 50, 32)]
SHIRTS = [(38, 84, 124), (178, 58, 72), (62, 128, 92), (232, 170, 66), (106, 76, 147), (70, 78, 92)]
SHIRTS += [(22, 138, 173), (217, 119, 87), (240, 240, 236)]
WALLS = [(206, 212, 218), (226, 213, 194), (196, 214, 206), (214, 204, 222)]

SPOT_SIZE = (1280, 720)


class Pictures(NamedTuple):
    """What a capture device and the box keep of one passage, JPEG bytes."""

    spot: bytes
    """The scene, 1280x720, about 60-100 KB."""
    face: bytes
    """The face cut out of it, about 6 KB."""


def registered_face(look: int) -> bytes:
    """Draw a person's registered face: JPEG, 320x400, about 10 KB; look is the person's number."""
    image = Image.new("RGB", (320, 400), (232, 236, 241))
    _person(ImageDraw.Draw(image), random.Random(look), centre=(160, 175), head=88)
    return _jpeg(_grain(image, look, 7), quality=80)


def passage(look: int, camera: int) -> Pictures:
    """Draw a person in front of a camera; look and camera are their numbers."""
    rng = random.Random(look * 1009 + camera)
    image = Image.new("RGB", SPOT_SIZE, WALLS[camera % len(WALLS)])
    draw = ImageDraw.Draw(image)
    _scene(draw, random.Random(camera))
    x, y, head = rng.randint(430, 850), rng.randint(270, 330), rng.randint(78, 104)
    _person(draw, random.Random(look), centre=(x, y), head=head)
    image = _grain(image, look * 31 + camera, 20)
    cut = (x - 2 * head, y - 2 * head, x + 2 * head, y + 2 * head)
    face = image.crop(cut).resize((224, 224))
    return Pictures(spot=_jpeg(image, quality=60), face=_jpeg(face, quality=72))


def _scene(draw: ImageDraw.ImageDraw, rng: random.Random) -> None:
    """A wall with windows and a door, and a tiled floor."""
    width, height = SPOT_SIZE
    floor = height * 2 // 3
    shade = rng.randint(90, 150)
    draw.rectangle((0, floor, width, height), fill=(shade, shade - 8, shade - 16))
    for x in range(-width, 2 * width, 120):
        draw.line(
            (width // 2 + (x - width // 2) // 3, floor, x, height), fill=(80, 76, 72), width=2
        )
    for y in (floor + 30, floor + 80, floor + 160):
        draw.line((0, y, width, y), fill=(80, 76, 72), width=2)
    door = rng.randint(60, width - 260)
    for x in range(60, width, 300):
        if door - 200 < x < door + 210:
            continue
        tint = rng.randint(150, 220)
        draw.rectangle(
            (x, 80, x + 180, 300), fill=(tint, tint + 20, 250), outline=(90, 90, 96), width=6
        )
        draw.line((x + 90, 80, x + 90, 300), fill=(90, 90, 96), width=5)
    draw.rectangle(
        (door, 150, door + 190, floor), fill=(124, 92, 66), outline=(70, 50, 36), width=6
    )
    draw.ellipse((door + 150, 310, door + 166, 326), fill=(230, 200, 90))


def _person(
    draw: ImageDraw.ImageDraw, rng: random.Random, centre: tuple[int, int], head: int
) -> None:
    """Head and shoulders; head is the radius of the face in pixels."""
    skin, hair, shirt = rng.choice(SKINS), rng.choice(HAIRS), rng.choice(SHIRTS)
    long_hair, glasses, smile = rng.random() < 0.45, rng.random() < 0.35, rng.random() < 0.7
    x, y = centre

    def box(left: float, top: float, right: float, bottom: float) -> Box:
        """A box given in units of the head's radius around its centre."""
        return (
            round(x + left * head),
            round(y + top * head),
            round(x + right * head),
            round(y + bottom * head),
        )

    if long_hair:
        draw.rounded_rectangle(box(-1.05, -1.0, 1.05, 1.6), radius=head // 2, fill=hair)
    draw.rounded_rectangle(box(-1.9, 1.35, 1.9, 6.5), radius=head * 3 // 4, fill=shirt)
    draw.rectangle(box(-0.35, 0.8, 0.35, 1.5), fill=_darker(skin))
    draw.polygon(
        [box(-0.4, 1.35, 0, 0)[:2], box(0.4, 1.35, 0, 0)[:2], box(0, 1.8, 0, 0)[:2]],
        fill=_darker(skin),
    )
    for side in (-1, 1):
        draw.ellipse(box(side * 0.92 - 0.17, -0.2, side * 0.92 + 0.17, 0.25), fill=_darker(skin))
    draw.ellipse(box(-1.02, -1.32, 1.02, 0.4), fill=hair)
    draw.ellipse(box(-0.88, -1.05, 0.88, 1.15), fill=skin)
    draw.pieslice(box(-0.92, -1.25, 0.92, 0.45), 188, 352, fill=hair)
    for side in (-1, 1):
        eye = side * 0.36
        draw.ellipse(box(eye - 0.17, -0.14, eye + 0.17, 0.12), fill=(252, 252, 252))
        draw.ellipse(box(eye - 0.08, -0.1, eye + 0.08, 0.1), fill=(44, 32, 26))
        draw.arc(box(eye - 0.24, -0.36, eye + 0.24, 0.02), 205, 335, fill=hair, width=head // 16)
        if glasses:
            draw.ellipse(
                box(eye - 0.3, -0.28, eye + 0.3, 0.28), outline=(40, 40, 44), width=head // 20
            )
    if glasses:
        draw.line(box(-0.07, -0.02, 0.07, -0.02), fill=(40, 40, 44), width=head // 20)
    draw.arc(box(-0.14, 0.05, 0.14, 0.42), 20, 160, fill=_darker(skin), width=head // 18)
    mouth = box(-0.32, 0.3, 0.32, 0.72) if smile else box(-0.24, 0.56, 0.24, 0.72)
    draw.arc(mouth, 20, 160, fill=(170, 66, 66), width=head // 13)


def _darker(colour: Colour) -> Colour:
    return (colour[0] * 9 // 10, colour[1] * 85 // 100, colour[2] * 8 // 10)


def _grain(image: Image.Image, seed: int, strength: int) -> Image.Image:
    """Add a camera's noise, without which a drawing is far smaller than a photograph."""
    width, height = image.size
    noise = random.Random(seed).getrandbits(8 * width * height).to_bytes(width * height, "little")
    grey = Image.frombytes("L", image.size, noise).point([v * strength // 255 for v in range(256)])
    return ImageChops.subtract(image, Image.merge("RGB", (grey, grey, grey)))


def _jpeg(image: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()
