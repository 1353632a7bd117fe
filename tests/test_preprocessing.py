"""Preprocessing by name, and reading pictures of every kind, good and bad."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sact.errors import InputError
from sact.preprocessing import (
    display_image,
    image_size,
    list_preprocessing,
    open_image,
    preprocess,
    resize_legacy_bilinear,
)


def picture(height: int = 48, width: int = 64, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_legacy_bilinear_hand_computed() -> None:
    row = torch.tensor([[0.0, 10.0, 20.0, 60.0]])
    # 4 -> 3: sources 0, 4/3, 8/3.
    shrunk = resize_legacy_bilinear(row, 1, 3)
    assert torch.allclose(shrunk, torch.tensor([[0.0, 10.0 + 10.0 / 3, 20.0 + 40.0 * 2 / 3]]), atol=1e-4)
    # 2 -> 4: sources 0, 0.5, 1, 1.5; the last lies beyond the last pixel and repeats it.
    square = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
    expected = torch.tensor([[0, 0.5, 1, 1], [1, 1.5, 2, 2], [2, 2.5, 3, 3], [2, 2.5, 3, 3]])
    assert torch.equal(resize_legacy_bilinear(square, 4, 4)[0], expected)


def test_legacy_bilinear_reads_only_two_pixels_on_shrinking() -> None:
    image = torch.zeros(1, 8, 8)
    image[0, 3, 3] = 1.0
    # Every fourth pixel is read exactly: antialiasing would show the odd one.
    assert resize_legacy_bilinear(image, 2, 2).abs().max() == 0


def test_legacy_bilinear_identity_and_single_pixel() -> None:
    image = torch.rand(3, 5, 7)
    assert torch.equal(resize_legacy_bilinear(image, 5, 7), image)
    assert torch.equal(resize_legacy_bilinear(torch.ones(3, 1, 1), 4, 6), torch.ones(3, 4, 6))


def test_imagenet_sact_crop_and_range() -> None:
    # 64 x 48 loses 4 columns and 3 rows on each side; at 2 x 2 the first pixel is the crop's corner.
    image = picture(48, 64)
    result = preprocess(image, {"name": "imagenet_sact", "size": 2})
    values = torch.from_numpy(np.asarray(image).copy()).float() / 255
    expected = torch.stack([torch.stack([values[y, x] for x in (4, 32)]) for y in (3, 24)])
    assert torch.allclose(result, expected.permute(2, 0, 1) * 2 - 1, atol=1e-6)


def test_imagenet_torchvision_equals_torchvision() -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2")
    reference = v2.Compose(
        [
            v2.Resize(256),
            v2.CenterCrop(224),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    for height, width in ((301, 400), (333, 222), (256, 257)):
        image = picture(height, width)
        result = preprocess(image, {"name": "imagenet_torchvision", "size": 224})
        assert torch.allclose(result, reference(image), atol=1e-5)


def test_cifar_standardises_and_resizes() -> None:
    result = preprocess(picture(32, 32), {"name": "cifar_sact", "size": 32})
    assert result.mean().abs() < 1e-5 and (result.square().mean() - 1).abs() < 1e-4
    assert preprocess(picture(50, 40), {"name": "cifar_sact"}).shape == (3, 32, 32)
    flat = preprocess(np.full((32, 32, 3), 77, np.uint8), {"name": "cifar_sact"})
    assert flat.isfinite().all() and flat.abs().max() < 1e-2


@pytest.mark.parametrize("name", list_preprocessing())
@pytest.mark.parametrize("shape", [(48, 64), (131, 33), (1, 1)])
def test_every_name_gives_its_shape(name: str, shape: tuple[int, int]) -> None:
    spec = {"name": name, "size": 40}
    result = preprocess(picture(*shape), spec)
    assert result.shape == (3, 40, 40) and result.dtype == torch.float32 and result.isfinite().all()
    assert result.is_contiguous()
    assert display_image(picture(*shape), spec).size == (40, 40)


@pytest.mark.parametrize("name", ["imagenet_sact", "scenes"])
def test_display_shows_what_the_network_sees(name: str) -> None:
    spec = {"name": name, "size": 36}
    shown = torch.from_numpy(np.asarray(display_image(picture(), spec)).copy()).permute(2, 0, 1).float()
    assert torch.allclose((preprocess(picture(), spec) + 1) * 127.5, shown, atol=0.51)


def test_inputs_of_all_kinds_agree(tmp_path: Path) -> None:
    image = picture()
    image.save(tmp_path / "a.png")
    spec = {"name": "scenes", "size": 32}
    expected = preprocess(image, spec)
    for same in (np.asarray(image), tmp_path / "a.png", str(tmp_path / "a.png"), np.asfortranarray(np.asarray(image))):
        assert torch.equal(preprocess(same, spec), expected)


@pytest.mark.parametrize(
    "spec", [{"name": "imagenet_"}, {}, {"name": None}, {"name": "scenes", "size": 0}, {"name": "scenes", "size": True},
             {"name": "scenes", "size": 9.5}, {"name": "scenes", "sise": 9}, "scenes", None],
)  # fmt: skip
def test_bad_specification(spec: object) -> None:
    with pytest.raises(InputError):
        preprocess(picture(), spec)  # type: ignore[arg-type]


def test_imagenet_as_timm_says_it() -> None:
    timm_data = pytest.importorskip("timm.data", reason="timm is not installed")
    noise = np.random.default_rng(0).integers(0, 255, (30, 41, 3), np.uint8)
    picture = Image.fromarray(noise).resize((410, 300), Image.Resampling.BICUBIC)
    for interpolation in ("bilinear", "bicubic"):
        spec = {"name": "imagenet", "size": 96, "crop": 0.9, "interpolation": interpolation}
        spec |= {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
        theirs = timm_data.create_transform(
            (3, 96, 96), interpolation=interpolation, crop_pct=0.9, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
        )
        torch.testing.assert_close(preprocess(picture, spec), theirs(picture))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"crop": 0}, '"crop" is 0'),
        ({"crop": "0.9"}, '"crop"'),
        ({"interpolation": "nearest"}, "bilinear or bicubic"),
        ({"mean": [0.5]}, '"mean"'),
        ({"std": [1, 1, 0]}, '"std"'),
        ({"means": [0.5] * 3}, "unknown keys"),
    ],
)
def test_bad_imagenet_specification(wrong: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        preprocess(Image.new("RGB", (64, 64)), {"name": "imagenet"} | wrong)


def test_unknown_name_lists_the_names() -> None:
    with pytest.raises(InputError, match="imagenet_sact, imagenet_torchvision, scenes"):
        preprocess(picture(), {"name": "nonsense"})


@pytest.mark.parametrize(
    "array",
    [np.zeros((8, 8), np.uint8), np.zeros((3, 8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)],
)
def test_bad_array(array: np.ndarray) -> None:
    with pytest.raises(InputError, match="uint8 of shape"):
        preprocess(array, {"name": "scenes"})
    with pytest.raises(InputError, match="not int"):
        preprocess(3, {"name": "scenes"})  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    smooth = Image.fromarray(np.dstack([np.tile(np.arange(64, dtype=np.uint8) * 3, (48, 1))] * 3))
    smooth.save(tmp_path / f"a.{suffix}")
    read = open_image(tmp_path / f"a.{suffix}")
    assert read.mode == "RGB" and read.size == (64, 48)
    assert np.abs(np.asarray(read).astype(int) - np.asarray(smooth)).mean() < 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_modes_keep_their_colour(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    colour = {"1": 255, "L": 100}.get(mode)
    image = Image.new("RGB", (16, 16), (204, 51, 102)) if colour is None else Image.new(mode, (16, 16), colour)
    image.convert(mode).save(file)
    expected = {"1": (255, 255, 255), "L": (100, 100, 100), "LA": (103, 103, 103)}.get(mode, (204, 51, 102))
    read = open_image(file)
    assert read.mode == "RGB"
    assert np.abs(np.asarray(read)[8, 8].astype(int) - expected).max() <= 8


def test_transparency_is_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(open_image(tmp_path / "clear.png")).min() == 255
    Image.new("RGBA", (8, 8), (0, 0, 0, 128)).save(tmp_path / "half.png")
    assert abs(int(np.asarray(open_image(tmp_path / "half.png")).max()) - 127) <= 1
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30] * 256)
    palette.save(tmp_path / "palette.png", transparency=0)
    assert np.asarray(open_image(tmp_path / "palette.png")).min() == 255


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.tile(np.linspace(0, 65535, 16).astype(np.uint16), (16, 1))
    Image.fromarray(values).save(tmp_path / "deep.png")
    read = np.asarray(open_image(tmp_path / "deep.png"))[0, :, 0]
    assert np.array_equal(read, np.round(values[0] / 257).astype(np.uint8))


def test_exif_orientation(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20))
    image.paste((255, 255, 255), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    read = np.asarray(open_image(tmp_path / "turned.jpg")).astype(int)
    # Orientation 6 is turned by 90 degrees clockwise: the white left half becomes the top.
    assert read.shape == (40, 20, 3)
    assert read[:18].mean() > 240 and read[22:].mean() < 15


def test_min_side_decodes_smaller(tmp_path: Path) -> None:
    picture(256, 512).save(tmp_path / "large.jpg")
    assert open_image(tmp_path / "large.jpg", min_side=64).size == (128, 64)


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (body, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_truncated(tmp_path: Path, suffix: str, share: float) -> None:
    picture(200, 200).save(tmp_path / f"whole.{suffix}")
    data = (tmp_path / f"whole.{suffix}").read_bytes()
    file = tmp_path / f"cut.{suffix}"
    file.write_bytes(data[: max(4, int(len(data) * share))])
    with pytest.raises(InputError, match="cut"):
        open_image(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"This is a text, not a picture.\n" * 9, "not a readable JPEG, PNG or WebP"),
        (png_header(100_000, 100_000), "too large"),
        (png_header(13_000, 13_000), "more than the limit of 150000000"),
        (png_header(64, 64), "damaged or truncated"),
        (b"\x89PNG\r\n\x1a\n", "bad"),
        (b"\xff\xd8\xff", "bad"),
        (b"GIF89a" + b"\0" * 30, "not a readable"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "bad.png"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        preprocess(file, {"name": "scenes"})
    assert "bad.png" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_folder_and_limit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no image file"):
        open_image(tmp_path / "nowhere.jpg")
    with pytest.raises(InputError, match="not a file"):
        open_image(tmp_path)
    picture().save(tmp_path / "a.png")
    with pytest.raises(
        InputError, match="64x48 = 3072 pixels, more than the limit of 3000; scale it down or raise max_"
    ):
        open_image(tmp_path / "a.png", max_pixels=3000)
    with pytest.raises(InputError, match="more than the limit of 3000; cut it$"):
        open_image(tmp_path / "a.png", max_pixels=3000, too_large="cut it")


def test_size_and_orientation_without_decoding(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(tmp_path / "turned.jpg", exif=exif)
    picture().save(tmp_path / "plain.png")
    assert image_size(tmp_path / "turned.jpg") == (64, 48, True)
    assert image_size(tmp_path / "plain.png") == (64, 48, False)
    assert open_image(tmp_path / "turned.jpg").size == (48, 64)
    assert open_image(tmp_path / "turned.jpg", upright=False).size == (64, 48)
    (tmp_path / "broken.png").write_bytes(b"none")
    assert image_size(tmp_path / "broken.png") is None and image_size(tmp_path / "nowhere.png") is None
