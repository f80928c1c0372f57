"""Draws a corpus of images: letters as jpeg files, in one folder a letter, turned, moved, coloured and blurred at random."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIZE = 48


def letter(text: str, draw: random.Random) -> Image.Image:
    """Returns an image of a letter."""
    paper, ink = (tuple(draw.randrange(low, low + 110) for _ in range(3)) for low in (140, 0))
    font = ImageFont.load_default(draw.randrange(26, 38))
    image = Image.new("RGB", (SIZE, SIZE), paper)
    place = tuple(SIZE / 2 + draw.uniform(-4, 4) for _ in range(2))
    ImageDraw.Draw(image).text(place, text, fill=ink, font=font, anchor="mm")
    image = image.rotate(draw.uniform(-20, 20), Image.Resampling.BILINEAR, fillcolor=paper)
    return image.filter(ImageFilter.GaussianBlur(draw.uniform(0, 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--number", type=int, default=5200, help="images in all")
    parser.add_argument("--letters", default="ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    options = parser.parse_args()
    draw = random.Random(0)
    for number in range(options.number):
        text = options.letters[number % len(options.letters)]
        path = options.folder / text / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        letter(text, draw).save(path, quality=90)


if __name__ == "__main__":
    main()
