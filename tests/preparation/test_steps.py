"""Steps as pure functions, and how the command line names them."""

from __future__ import annotations

import io
import re
import unicodedata
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shardload.errors import PackError
from shardload.preparation import Refusal, run_steps
from shardload.preparation.named import named_step


def one(text: str, values: dict[str, Any]) -> Any:
    """What a step makes of a sample: values, None, or why not."""
    done = run_steps([named_step(text)], values)
    assert len(done) <= 1
    return None if not done else done[0].reason if isinstance(done[0], Refusal) else done[0]


@given(st.text(), st.integers())
def test_normal_form(text: str, other: int) -> None:
    before = {"text": text, "other": other}
    assert one("nfc:text", before) == {"text": unicodedata.normalize("NFC", text), "other": other}
    assert before == {"text": text, "other": other}


def test_normal_form_of_what_is_no_text() -> None:
    assert one("nfc:text", {"text": "e\u0301"}) == {"text": "\u00e9"}
    assert one("nfc:text", {"text": None}) == {"text": None} and one("nfc:text", {"a": 1}) == {"a": 1}
    assert one("nfc:text", {"text": b""}) == "nfc:text: field 'text' is no text but bytes"


@given(st.text(max_size=12), st.integers(0, 12), st.integers(0, 12))
def test_bounds_of_texts(text: str, minimum: int, span: int) -> None:
    bounds = f"min={minimum},max={minimum + span}"
    for unit, length in (("", len(text)), (",unit=characters", len(text)), (",unit=bytes", len(text.encode()))):
        stays = minimum <= length <= minimum + span
        assert one(f"length:a,{bounds}{unit}", {"a": text}) == ({"a": text} if stays else None)


@pytest.mark.parametrize(
    ("step", "value", "outcome"),
    [
        ("length:a,min=2", b"ab", True),
        ("length:a,max=2,unit=bytes", b"abc", False),
        ("length:a,max=2,unit=tokens", [1, 2], True),
        ("length:a,min=3,unit=tokens", np.arange(3), True),
        ("length:a,min=3", np.arange(2), False),
        ("length:a,min=1", None, False),
        ("length:a,max=1", None, True),
        ("length:a,max=1", 5, "length:a,max=1: field 'a' is a int, which has no length"),
        ("length:a,max=1,unit=tokens", "ab", "field 'a' is a str, which has no number of tokens"),
        ("length:a,max=1,unit=tokens", b"ab", "field 'a' is a bytes, which has no number of tokens"),
        ("length:a,max=1,unit=characters", b"ab", "field 'a' is a bytes, which has no number of characters"),
        ("length:a,max=1,unit=bytes", [1], "field 'a' is a list, which has no number of bytes"),
    ],
)
def test_bounds(step: str, value: Any, outcome: bool | str) -> None:
    found = one(step, {"a": value})
    assert (found is not None) == outcome if isinstance(outcome, bool) else found.endswith(outcome)


def jpeg(size: tuple[int, int], orientation: int = 1, mode: str = "RGB") -> bytes:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), np.uint8)).resize(size)
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    image.convert(mode).save(out, "JPEG", quality=95, exif=exif)
    return out.getvalue()


def opened(data: bytes) -> Any:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize(
    ("settings", "size", "expected"),
    [
        ("shorter=64", (640, 320), (128, 64)),
        ("shorter=64", (320, 640), (64, 128)),
        ("longer=64", (640, 320), (64, 32)),
        ("longer=100,shorter=64", (640, 320), (100, 50)),
        ("shorter=400", (640, 320), (640, 320)),
        ("longer=7", (999, 1), (7, 1)),
        ("quality=50", (31, 17), (31, 17)),
    ],
)
def test_images_are_scaled_down(settings: str, size: tuple[int, int], expected: tuple[int, int]) -> None:
    for orientation in (1, 6):
        turned = expected[::-1] if orientation == 6 else expected
        image = opened(one(f"image:a,{settings}", {"a": jpeg(size, orientation)})["a"])
        assert (image.format, image.size, image.getexif().get(0x0112)) == ("JPEG", turned, None)


def test_a_scaled_image_shows_what_it_did() -> None:
    """Upright, and near what scaling all pixels gives."""
    data = jpeg((640, 320), orientation=3)
    found = np.asarray(opened(one("image:a,shorter=40,format=png", {"a": data})["a"]), float)
    expected = np.asarray(opened(data).rotate(180).resize((80, 40), Image.Resampling.LANCZOS), float)
    assert np.abs(found - expected).mean() < 3


def test_images_encoded_anew() -> None:
    small = one("image:a,quality=30", {"a": jpeg((300, 200))})["a"]
    large = one("image:a,quality=95", {"a": jpeg((300, 200))})["a"]
    assert len(small) < len(large)
    transparent = io.BytesIO()
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(transparent, "PNG")
    assert opened(one("image:a,format=png", {"a": transparent.getvalue()})["a"]).mode == "RGBA"
    assert opened(one("image:a", {"a": transparent.getvalue()})["a"]).mode == "RGB"
    grey = one("image:a", {"a": jpeg((40, 40), mode="L")})["a"]
    assert opened(grey).mode == "L"
    assert one("image:a", {"a": None}) == {"a": None}


def bomb() -> bytes:
    """A png of 20,000 by 20,000 pixels in a few bytes."""
    header = (20_000).to_bytes(4, "big") * 2 + b"\x08\x00\x00\x00\x00"
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big") for kind, data in chunks
    )


def test_images_that_cannot_be() -> None:
    deep = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(deep, "PNG")
    for data, reason in (
        (jpeg((640, 320))[:-3000], "is no image that can be read: image file is truncated"),
        (b"\xff\xd8\xff", "is no image that can be read: cannot identify image file"),
        (b"", "is no image that can be read: cannot identify image file"),
        (bomb(), "is no image that can be read: Image size (400000000 pixels) exceeds limit"),
        (deep.getvalue(), "grey of more than 8 bits (mode I;16) cannot be a jpeg"),
        ("text", "is no image but str"),
    ):
        assert reason in one("image:a", {"a": data})
    assert opened(one("image:a,format=png", {"a": deep.getvalue()})["a"]).mode.startswith("I")


TYPES = {"text": "str?", "data": "bytes", "picture": "png?", "tokens": "uint16[*]", "tree": "json", "n": "int64"}


@pytest.mark.parametrize(
    ("step", "outcome"),
    [
        ("nfc:text", TYPES),
        ("nfc:data", "data' is bytes; it takes str"),
        ("nfc:txt", "s: nfc:txt: there is no field 'txt'; its fields are text, data,"),
        ("length:text,min=1", TYPES),
        ("length:tokens,min=1", TYPES),
        ("length:tree,min=1,unit=tokens", TYPES),
        ("length:n,min=1", "field 'n' is int64; it takes str, bytes"),
        ("length:tokens,min=1,unit=characters", "field 'tokens' is uint16[*]; it takes str"),
        ("length:text,min=1,unit=tokens", "field 'text' is str?; it takes json"),
        ("image:picture", {**TYPES, "picture": "jpeg?"}),
        ("image:data,format=png", {**TYPES, "data": "png"}),
        ("image:text", "field 'text' is str?; it takes jpeg, png, bytes"),
    ],
)
def test_types_that_steps_take_and_give(step: str, outcome: dict[str, str] | str) -> None:
    if isinstance(outcome, dict):
        assert named_step(step).types(TYPES, "s") == outcome
    else:
        with pytest.raises(PackError, match=re.escape(outcome)):
            named_step(step).types(TYPES, "s")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a step is nfc, length, image, map or filter, a colon and a field or function"),
        ("nfc", "such as nfc:text, not 'nfc'"),
        ("nfc:text,form=D", "step 'nfc:text,form=D': nfc has no setting 'form'"),
        ("length:text", "step 'length:text': give min, max or both"),
        ("length:text,min", "'min' is no setting, such as max=2000, that is given once"),
        ("length:text,min=1,min=2", "'min=2' is no setting"),
        ("length:text,min=-1", "min must be a whole number of at least 0, not '-1'"),
        ("length:text,min=2,max=1", "max is below min"),
        ("length:text,min=2,unit=words", "unit must be characters, bytes or tokens, not 'words'"),
        ("image:a,format=gif", "format must be jpeg or png, not 'gif'"),
        ("image:a,quality=96", "quality must be 1 to 95, not 96"),
        ("image:a,shorter=0", "shorter must be a whole number of at least 1, not '0'"),
        ("map:clean", "map must be named as pkg.module:function, not 'clean'"),
    ],
)
def test_names_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        named_step(text)


def test_the_order_of_steps_counts_and_a_refused_sample_goes_no_further() -> None:
    steps = [named_step(text) for text in ("length:text,max=1", "nfc:text", "length:text,max=1")]
    assert run_steps(steps, {"text": "e\u0301"}) == []
    assert run_steps(steps[1:], {"text": "e\u0301"}) == [{"text": "\u00e9"}]
    noted: list[int] = []
    done = run_steps([named_step("nfc:text"), named_step("length:text,min=1")], {"text": 5}, noted.append)
    assert done == [Refusal("nfc:text: field 'text' is no text but int")] and noted == [0, 1]
