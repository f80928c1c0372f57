"""Images come out as pixels, the same whoever decodes them, and a damaged one is an error that names it."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

import shardload
from shardload import ImageDecode
from shardload.codecs.images import crop_box
from shardload.order.rng import decode_rng

NUM_IMAGES = 23
GOLDEN = {
    (0, 0, 0): (59.0, 44.0, 376.0, 366.0),
    (0, 1, 0): (103.0, 33.0, 437.0, 351.0),
    (7, 2, 12345): (201.0, 38.0, 407.0, 260.0),
    (18446744073709551615, 3, 10000000000): (82.0, 81.0, 221.0, 197.0),
}


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return file.getvalue()


def pixels_of(i: int, height: int = 40, width: int = 60) -> np.ndarray:
    """Returns a smooth image of shape (height, width, 3) that tells sides and channels apart."""
    down, across = np.mgrid[:height, :width]
    return np.stack([across * 255 // width, down * 255 // height, np.full_like(down, 10 * i)], -1).astype(np.uint8)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    with shardload.ShardWriter(tmp_path / "out", schema={"image": "png", "label": "int64"}) as writer:
        for i in range(NUM_IMAGES):
            writer.write({"image": encoded(pixels_of(i)), "label": i})
    return tmp_path / "out"


def test_whole_images_are_what_was_stored(images: Path) -> None:
    dataset = shardload.open(images, decode={"image": ImageDecode()})
    for i in (0, 7, NUM_IMAGES - 1):
        np.testing.assert_array_equal(dataset[i]["image"], pixels_of(i).transpose(2, 0, 1))
    batch = next(iter(shardload.ShardLoader(dataset, 5, shuffle=False)))
    assert batch["image"].shape == (5, 3, 40, 60) and batch["image"].dtype == torch.uint8
    assert torch.equal(batch["image"][3], torch.from_numpy(pixels_of(3).transpose(2, 0, 1).copy()))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("factor", [1, 2, 5, 9])
def test_scaled_images_are_close_to_the_picture_at_that_size(kind: str, factor: int) -> None:
    data = encoded(pixels_of(3, 32 * factor, 48 * factor), kind)
    image = ImageDecode((32, 48))(data, None)
    assert image.shape == (3, 32, 48)
    assert np.abs(image.transpose(1, 2, 0).astype(int) - pixels_of(3, 32, 48)).max() <= 12
    middle = ImageDecode(32, crop="center")(data, None)
    assert np.abs(middle.transpose(1, 2, 0).astype(int) - pixels_of(3, 32, 48)[:, 8:40]).max() <= 12


@pytest.mark.parametrize(
    "kind, mode", [("PNG", m) for m in ("1", "L", "LA", "P", "RGBA")] + [("JPEG", "L"), ("JPEG", "CMYK")]
)
@pytest.mark.parametrize("size", [None, 10])
def test_every_mode_becomes_rgb(kind: str, mode: str, size: int | None) -> None:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), (255, 255, 255)).convert(mode).save(file, kind)
    image = ImageDecode(size)(file.getvalue(), None)
    assert image.shape == (3, size or 40, size or 40) and image.dtype == np.uint8 and image.min() >= 250


def test_a_flip_mirrors_left_and_right() -> None:
    data = encoded(pixels_of(1))
    np.testing.assert_array_equal(ImageDecode(flip=1.0)(data, None), ImageDecode()(data, None)[:, :, ::-1])
    rng, plain = np.random.default_rng(0), ImageDecode()(data, None)
    flipped = sum(not np.array_equal(ImageDecode(flip=0.25)(data, rng), plain) for _ in range(400))
    assert 60 <= flipped <= 140


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.2, 5), st.integers(0, 2**32) | st.none())
def test_crops_lie_inside_the_image(width: int, height: int, ratio: float, seed: int | None) -> None:
    left, top, right, bottom = crop_box(width, height, ratio, None if seed is None else np.random.default_rng(seed))
    assert 0 <= left < right <= width + 1e-9 and 0 <= top < bottom <= height + 1e-9
    if seed is None:
        assert (right - left) / (bottom - top) == pytest.approx(ratio)


def test_random_crops_have_the_areas_and_shapes_promised() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([crop_box(400, 400, 1.0, rng) for _ in range(2000)])
    across, down = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    areas, ratios = across * down / 400**2, across / down
    assert 0.075 <= areas.min() <= 0.09 and 0.95 <= areas.max() <= 1 and 0.45 <= areas.mean() <= 0.6
    assert 0.73 <= ratios.min() <= 0.76 and 1.31 <= ratios.max() <= 1.36
    # Any place is as likely: what is left of the box is on average what is right of it.
    assert abs(boxes[:, 0].mean() - (400 - boxes[:, 2]).mean()) < 8


def test_golden_draws() -> None:
    """A run that goes on with a later version must see the same crops."""
    boxes = [crop_box(500, 375, 1.0, decode_rng(seed, epoch, i, "image")) for seed, epoch, i in GOLDEN]
    assert boxes == list(GOLDEN.values())
    assert crop_box(500, 375, 1.0, decode_rng(0, 0, 0, "other")) != boxes[0]


def epoch_of(path: Path, epoch: int, **options: Any) -> dict[int, bytes]:
    loader = shardload.ShardLoader(
        shardload.open(path), 4, shuffle=True, with_ids=True, tail="short", **options,
        decode={"image": ImageDecode(16, crop="random", flip=0.5)},
    )  # fmt: skip
    loader.set_epoch(epoch)
    found = {}
    for batch in loader:
        found |= {
            i: image.numpy().tobytes() for i, image in zip(batch["_sample_id"].tolist(), batch["image"], strict=True)
        }
    loader.close()
    return found


def test_draws_belong_to_seed_epoch_and_sample(images: Path) -> None:
    first = epoch_of(images, 0, num_threads=0)
    assert len(first) == NUM_IMAGES and len(set(first.values())) == NUM_IMAGES
    assert epoch_of(images, 0, num_threads=3) == first == epoch_of(images, 0, prefetch_batches=0)
    other = epoch_of(images, 1)
    assert all(other[i] != first[i] for i in first)
    assert epoch_of(images, 0, seed=1) != first
    joined: dict[int, bytes] = {}
    for rank in range(2):
        part = epoch_of(images, 0, num_replicas=2, rank=rank)
        joined |= part
    assert joined == first


@pytest.mark.usefixtures("quick_processes")
def test_path_1_and_processes_draw_the_same(images: Path) -> None:
    first = epoch_of(images, 0)
    assert epoch_of(images, 0, num_processes=1) == first
    dataset = shardload.open(images, decode={"image": ImageDecode(16, crop="random", flip=0.5)})
    sampler = shardload.ShardSampler(dataset, num_replicas=1, rank=0, shuffle=True, seed=0)
    batches = DataLoader(dataset, batch_sampler=sampler.batch_sampler(4), collate_fn=shardload.collate)
    found = {}
    for batch in batches:
        found |= {i: image.numpy().tobytes() for i, image in zip(batch["label"].tolist(), batch["image"], strict=True)}
    assert found == first
    with pytest.raises(ValueError, match="keyed by seed and epoch"):
        dataset[0]


def test_mixed_sizes_and_missing_images(tmp_path: Path) -> None:
    with shardload.ShardWriter(tmp_path / "out", schema={"image": "jpeg?"}) as writer:
        for height in (20, 30, None):
            data = None if height is None else encoded(pixels_of(1, height, 50), "JPEG")
            writer.write({"image": data})
    batch = next(iter(shardload.ShardLoader(shardload.open(tmp_path / "out"), 3, shuffle=False,
                                            decode={"image": ImageDecode()})))  # fmt: skip
    assert [None if image is None else tuple(image.shape) for image in batch["image"]] == [
        (3, 20, 50),
        (3, 30, 50),
        None,
    ]
    dataset = shardload.open(tmp_path / "out", decode={"image": ImageDecode(8)})
    assert dataset[2]["image"] is None and dataset[1]["image"].shape == (3, 8, 8)
    batch = next(iter(shardload.ShardLoader(dataset, 3, shuffle=False)))
    assert batch["_valid_image"].tolist() == [True, True, False] and not batch["image"][2].any()


@pytest.mark.parametrize("cut", ["half", "start", "deep"])
def test_a_damaged_image_names_field_and_sample(tmp_path: Path, cut: str) -> None:
    kind = "png" if cut == "deep" else "jpeg"
    whole = encoded(pixels_of(1, 200, 300), kind.upper())
    deep = encoded(np.full((9, 9), 40000, np.uint16))
    data = {"half": whole[: len(whole) // 2], "start": whole[:20], "deep": deep}[cut]
    with shardload.ShardWriter(tmp_path / "out", schema={"image": kind}) as writer:
        writer.write({"image": whole})
        writer.write({"image": data})
    loader = shardload.ShardLoader(shardload.open(tmp_path / "out"), 1, shuffle=False, decode={"image": ImageDecode(8)})
    batches = iter(loader)
    next(batches)
    with pytest.raises(
        shardload.FormatError, match=r"field 'image' of sample 1 is (no whole|a grey image of more)"
    ) as caught:
        next(batches)
    assert caught.value.sample_id == 1


def png_of_16_bits(colour: int, num_channels: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head, rows = struct.pack(">IIBBBBB", 4, 2, 16, colour, 0, 0, 0), (b"\0" + b"\x12\xf0" * num_channels * 4) * 2
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("colour, num_channels", [(2, 3), (6, 4)])
def test_of_16_bits_the_upper_ones_are_taken(colour: int, num_channels: int) -> None:
    image = ImageDecode()(png_of_16_bits(colour, num_channels), None)
    assert image.shape == (3, 2, 4) and (image == 0x12).all()


def test_a_transparent_palette_is_no_reason_to_warn() -> None:
    file = io.BytesIO()
    Image.fromarray(pixels_of(1)).convert("P").save(file, "PNG", transparency=bytes(range(200)))
    assert ImageDecode()(file.getvalue(), None).shape == (3, 40, 60)


def test_the_least_image_is_owned() -> None:
    image = ImageDecode()(encoded(pixels_of(3, 1, 1)), None)
    assert image.shape == (3, 1, 1) and image.flags.writeable and image.flags.c_contiguous


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_any_damage_is_a_format_error_or_a_picture(kind: str) -> None:
    whole, rng, refused = encoded(pixels_of(1, 12, 14), kind), np.random.default_rng(0), 0
    flips = [(i, whole[i] ^ bit) for i in range(len(whole)) for bit in (1, 0x80, 0xFF)]
    damaged = [whole[:i] + bytes([value]) + whole[i + 1 :] for i, value in flips]
    damaged += [whole[:i] for i in range(len(whole))] + [rng.bytes(200), whole[:30] + rng.bytes(300)]
    for data in damaged:
        try:
            assert ImageDecode(5)(data, None).shape == (3, 5, 5)
        except shardload.FormatError:
            refused += 1
    assert refused > len(whole)


def test_without_pillow_the_extra_is_named(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install 'shardload\[images\]'"):
        next(iter(shardload.ShardLoader(shardload.open(images, decode={"image": ImageDecode(8)}), 2, shuffle=True)))


def test_settings_that_cannot_be(images: Path) -> None:
    wrong = ({"size": 0}, {"size": (1, 2, 3)}, {"size": 8.0}, {"crop": "middle"}, {"crop": "center"}, {"flip": 1.5})
    for options in wrong:
        with pytest.raises(ValueError, match=next(iter(options))):
            ImageDecode(**options)
    with pytest.raises(ValueError, match="'label' is not a jpeg or png field that is read; those are image"):
        shardload.open(images, decode={"label": ImageDecode()})
    with pytest.raises(ValueError, match="that is read; those are none"):
        shardload.open(images, fields=["label"], decode={"image": ImageDecode()})
    with pytest.raises(TypeError, match="must be given as an ImageDecode"):
        shardload.open(images, decode={"image": 224})  # type: ignore[dict-item]
    dataset = shardload.open(images, decode={"image": ImageDecode()})
    with pytest.raises(ValueError, match="leave one out"):
        shardload.ShardLoader(dataset, 2, shuffle=False, decode={"image": ImageDecode(8)})
    assert list(next(iter(shardload.ShardLoader(dataset, 2, shuffle=False, fields=["label"])))) == ["label"]
