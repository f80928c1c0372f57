"""Images encoded anew, smaller where they are large: on Pillow."""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from shardload.preparation.steps import StepError, Values
from shardload.preparation.text import check_type

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)
"""Orientations of EXIF that swap width and height."""
_DEEP_MODES = ("I", "F")
"""Grey of more than 8 bits, which a conversion would clip in silence."""


@dataclass(frozen=True, slots=True)
class EncodeImage:
    """Encodes an image anew, upright as its EXIF says and without EXIF, scaled down to a longest or shortest side.

    An image that is smaller already keeps its size. Alpha is left out of a jpeg.
    """

    field: str
    format: Literal["jpeg", "png"] = "jpeg"
    quality: int = 90
    """Of a jpeg, 1 to 95."""
    shorter: int | None = None
    """Pixels that the shorter side has at most, and exactly if it had more."""
    longer: int | None = None
    """The same for the longer side."""
    label: str = dataclasses.field(default="", compare=False)

    @property
    def versions(self) -> Mapping[str, str]:
        """The version of Pillow, and of the library that encodes jpegs."""
        from PIL import features

        return {"pillow": pillow().__version__, "jpeg library": str(features.version("jpg"))}

    def types(self, before: Mapping[str, str], location: str) -> dict[str, str] | None:
        """Returns the types with that of the image as it is encoded.

        Raises:
            PackError: the field is no image.
        """
        check_type(self, self.field, before, location, ("jpeg", "png", "bytes"))
        return {**before, self.field: self.format + ("?" if before[self.field].endswith("?") else "")}

    def __call__(self, values: Values) -> list[Values]:
        """Returns the sample with the image encoded anew; a missing one stays missing.

        Raises:
            StepError: it is no whole image, or far larger than images are.
        """
        data = values.get(self.field)
        if data is None:
            return [values]
        if not isinstance(data, bytes):
            raise StepError(f"{self.label}: field {self.field!r} is no image but {type(data).__name__}")
        module = pillow()
        try:
            with warnings.catch_warnings(), module.open(io.BytesIO(data), formats=_FORMATS) as image:
                # Pillow warns of images over 89 million pixels, and refuses those of twice as many.
                warnings.simplefilter("ignore")
                encoded = self._encoded(image, module)
        # Damaged images make Pillow raise whatever its parsers come across; all of it is said of this image.
        except Exception as error:
            text = str(error) or type(error).__name__
            raise StepError(f"{self.label}: field {self.field!r} is no image that can be read: {text}") from None
        return [{**values, self.field: encoded}]

    def _encoded(self, image: Any, module: Any) -> bytes:
        from PIL import ImageOps

        if self.format == "jpeg" and image.mode.split(";")[0] in _DEEP_MODES:
            raise ValueError(f"grey of more than 8 bits (mode {image.mode}) cannot be a jpeg")
        profile, target = image.info.get("icc_profile"), self._target(image.size)
        if target is not None and image.format == "JPEG":
            # Decoded at 1/2, 1/4 or 1/8 for a part of the price; twice as large as what comes out, so that it stays sharp.
            image.draft(None, (2 * target[0], 2 * target[1]))
        turned = image.getexif().get(_ORIENTATION, 1) in _TURNED
        upright = self._plain(ImageOps.exif_transpose(image))
        if target is not None:
            upright = upright.resize(target[::-1] if turned else target, module.Resampling.LANCZOS)
        out = io.BytesIO()
        if self.format == "jpeg":
            upright.save(out, "JPEG", quality=self.quality, icc_profile=profile)
        else:
            upright.save(out, "PNG", icc_profile=profile)
        return out.getvalue()

    def _plain(self, image: Any) -> Any:
        """Returns an image in a mode that can be scaled and encoded."""
        modes = ("L", "RGB") if self.format == "jpeg" else ("L", "LA", "RGB", "RGBA", *_DEEP_MODES, "I;16")
        if image.mode in modes:
            return image
        has_alpha = "A" in image.getbands() or "transparency" in image.info
        return image.convert("RGBA" if has_alpha and self.format == "png" else "RGB")

    def _target(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """Returns width and height to scale to; None where the image stays as large as it is."""
        scales = [1.0]
        if self.shorter is not None:
            scales.append(self.shorter / min(size))
        if self.longer is not None:
            scales.append(self.longer / max(size))
        scale = min(scales)
        return None if scale >= 1 else (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))


def pillow() -> Any:
    """Returns Pillow's module `Image`.

    Raises:
        ImportError: it is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ImportError(
            "images are encoded by Pillow, which is not installed: pip install 'shardload[images]'"
        ) from None
    return Image
