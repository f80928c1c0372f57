"""Encoded images to pixels, on Pillow: scaled, cropped and flipped in one pass.

Pillow is not the fastest decoder, but a small library that reads jpeg and png alike, smooths when it scales, releases the
interpreter lock, and says what is wrong with a damaged image.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shardload.errors import FormatError

Box = tuple[float, float, float, float]

_MIN_AREA = 0.08
_MIN_RATIO, _MAX_RATIO = 3 / 4, 4 / 3
_NUM_TRIES = 10
# Grey of more than 8 bits: converting it would clip in silence.
_DEEP_MODES = ("I", "F")


@dataclass(frozen=True)
class ImageDecode:
    """How images of a jpeg or png field become pixels: uint8 of shape (3, height, width), RGB.

    Grey and palette images become RGB, an alpha channel is left out, and an orientation in EXIF is not applied. Of colours of
    16 bits the upper 8 are taken; grey of 16 bits, which is mostly no picture but a measure such as depth, is refused.
    """

    size: int | tuple[int, int] | None = None
    """Height and width in pixels, one number for squares; None leaves images as large as they are."""
    crop: Literal["random", "center"] | None = None
    """What part is scaled to `size`. `center`: the largest part of its aspect ratio, from the middle; `random`: 8 to 100 % of
    the area at an aspect ratio of 3/4 to 4/3 (Szegedy et al., "Going deeper with convolutions", 2014, section 6), drawn anew
    for each sample and epoch; None: the whole image, whatever its aspect ratio."""
    flip: float = 0.0
    """How likely the image is mirrored left to right."""

    def __post_init__(self) -> None:
        sides = () if self.size is None else self.size if isinstance(self.size, tuple) else (self.size,)
        if (isinstance(self.size, tuple) and len(self.size) != 2) or not all(type(n) is int and n > 0 for n in sides):
            raise ValueError(f"size must be a number of pixels, a pair (height, width) or None, not {self.size!r}")
        if self.crop not in ("random", "center", None):
            raise ValueError(f"crop must be 'random', 'center' or None, not {self.crop!r}")
        if self.crop is not None and self.size is None:
            raise ValueError(f"crop={self.crop!r} needs a size that the part is scaled to")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip must be a probability from 0 to 1, not {self.flip!r}")

    @property
    def random(self) -> bool:
        """Whether the pixels depend on draws."""
        return self.crop == "random" or 0 < self.flip < 1

    @property
    def target(self) -> tuple[int, int] | None:
        """Height and width that all images come out with; None where they keep theirs."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def __call__(self, data: bytes, rng: np.random.Generator | None) -> NDArray[np.uint8]:
        """Returns the pixels of one image: uint8 of shape (3, height, width), C-contiguous and new.

        Args:
            data: the image as stored.
            rng: what is drawn from; may be None unless `random`.

        Raises:
            FormatError: the bytes are no whole image, or a grey one of more than 8 bits.
            ImportError: Pillow is not installed.
        """
        image_module = _pillow()
        try:
            with image_module.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
                if image.mode.split(";")[0] in _DEEP_MODES:
                    raise FormatError(f"a grey image of more than 8 bits (mode {image.mode})")
                # Of a palette Pillow would keep it, or warn for each image.
                image.info.pop("transparency", None)
                pixels = self._pixels(image, image_module, rng)
        except FormatError:
            raise
        except (OSError, SyntaxError, ValueError, image_module.DecompressionBombError) as error:
            raise FormatError(f"no whole jpeg or png image: {error}") from None
        flipped = self.flip == 1 or (0 < self.flip < 1 and _needed(rng).random() < self.flip)
        return np.array((pixels[:, ::-1] if flipped else pixels).transpose(2, 0, 1), order="C")

    def _pixels(self, image: Any, image_module: Any, rng: np.random.Generator | None) -> NDArray[np.uint8]:
        """Returns pixels of shape (height, width, 3) before the flip."""
        if self.target is None:
            return np.asarray(image.convert("RGB"))
        height, width = self.target
        whole = image.size
        box = (0.0, 0.0, float(whole[0]), float(whole[1]))
        if self.crop is not None:
            box = crop_box(whole[0], whole[1], width / height, _needed(rng) if self.crop == "random" else None)
        # A jpeg can be decoded at 1/2, 1/4 or 1/8 for a part of the price; no smaller than what is to come out.
        scale = min((box[2] - box[0]) / width, (box[3] - box[1]) / height)
        image.draft("RGB", (math.ceil(whole[0] / scale), math.ceil(whole[1] / scale)))
        across, down = image.size[0] / whole[0], image.size[1] / whole[1]
        part = (box[0] * across, box[1] * down, min(box[2] * across, image.size[0]), min(box[3] * down, image.size[1]))
        return np.asarray(image.convert("RGB").resize((width, height), image_module.Resampling.BILINEAR, box=part))


def crop_box(width: int, height: int, ratio: float, rng: np.random.Generator | None) -> Box:
    """Returns the part of an image that is used: left, top, right and bottom in its pixels.

    Args:
        width: of the image.
        height: of the image.
        ratio: width / height of the result, for a part from the middle.
        rng: what a random part is drawn from; None for the middle.
    """
    for _ in range(_NUM_TRIES if rng is not None else 0):
        assert rng is not None
        area = width * height * rng.uniform(_MIN_AREA, 1.0)
        shape = math.exp(rng.uniform(math.log(_MIN_RATIO), math.log(_MAX_RATIO)))
        across, down = max(1, round(math.sqrt(area * shape))), max(1, round(math.sqrt(area / shape)))
        if across <= width and down <= height:
            left, top = int(rng.integers(width - across + 1)), int(rng.integers(height - down + 1))
            return float(left), float(top), float(left + across), float(top + down)
    across_, down_ = min(width, height * ratio), min(height, width / ratio)
    left_, top_ = (width - across_) / 2, (height - down_) / 2
    return left_, top_, left_ + across_, top_ + down_


def _needed(rng: np.random.Generator | None) -> np.random.Generator:
    if rng is None:
        raise ValueError("a random crop or flip needs a generator")
    return rng


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise ImportError(
            "images are decoded by Pillow, which is not installed: pip install 'shardload[images]'"
        ) from None
    return Image
