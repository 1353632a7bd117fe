"""`Materialised`: the same pictures from disk, drawn once, and drawn again when the file is not to be trusted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sact.data.materialised import Materialised
from sact.errors import InputError

COUNT = 40


class Source:
    """Random pictures that count how often they are drawn."""

    class_names = ("a", "b", "c")
    num_classes = 3
    preprocessing = {"name": "scenes", "size": 8}

    def __init__(self, seed: int = 0, count: int = COUNT, scale: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = (torch.rand(count, 3, 8, 8, generator=generator) * 2 - 1) * scale
        self.reads: list[int] = []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        self.reads.append(index)
        return self.images[index], index % 3, "a mask"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SACT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def agrees(data: Materialised, source: Source) -> bool:
    """Whether all pictures are the source's, perhaps mirrored, within half a grey level."""
    half = 0.5 / 127.5 + 1e-6
    for index, original in enumerate(source.images):
        image, label = data[index]
        if label != index % 3 or min((image - o).abs().max() for o in (original, original.flip(2))) > half:
            return False
    return len(data) == len(source)


def test_pictures_labels_and_attributes() -> None:
    source = Source()
    data = Materialised(source, {"seed": 0})
    assert agrees(data, source)
    image, label = data[3]
    assert (image.dtype, image.shape, type(label)) == (torch.float32, (3, 8, 8), int)
    assert (data.class_names, data.num_classes, data.preprocessing) == (("a", "b", "c"), 3, source.preprocessing)
    mirrored = [bool((data[index][0] - source.images[index]).abs().max() > 0.1) for index in range(COUNT)]
    assert 0 < sum(mirrored) < COUNT


def test_the_ends_of_the_range_survive() -> None:
    source = Source(count=2)
    source.images[:, :, 0, 0], source.images[:, :, 0, 7] = -1.0, 1.0
    image = Materialised(source, {})[0][0]
    assert (image.min(), image.max()) == (-1.0, 1.0)


def test_a_second_one_reads_the_file(cache: Path) -> None:
    Materialised(Source(), {"seed": 0, "scale": (0.2, 0.4)})
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    source = Source()
    again = Materialised(source, {"scale": (0.2, 0.4), "seed": 0})
    assert len(source.reads) <= 10
    assert agrees(again, source)
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == before
    assert len(before) == 2


def test_another_key_is_another_file(cache: Path) -> None:
    one, other = Source(0), Source(1)
    first, second = Materialised(one, {"seed": 0}), Materialised(other, {"seed": 1})
    assert agrees(first, one)
    assert agrees(second, other)
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("part", ["images", "labels"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "missing", "shape", "pickle"])
def test_a_damaged_file_is_drawn_again(cache: Path, part: str, damage: str) -> None:
    Materialised(Source(), {})
    (path,) = cache.glob(f"*-{part}.npy")
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[:-20])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "garbage":
        path.write_bytes(b"no array at all")
    elif damage == "missing":
        path.unlink()
    elif damage == "shape":
        np.save(path, np.zeros((3, 2), np.uint8))
    else:
        np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    source = Source()
    assert agrees(Materialised(source, {}), source)
    assert len(list(cache.iterdir())) == 2


def test_a_stale_file_is_drawn_again() -> None:
    """The same key, but the source now draws otherwise: other photographs on this machine, for instance."""
    Materialised(Source(0), {})
    source = Source(1)
    assert agrees(Materialised(source, {}), source)


def test_an_interrupted_drawing_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Source, index: int) -> tuple[Tensor, int, str]:
        if index == COUNT // 2:
            raise KeyboardInterrupt
        return self.images[index], 0, ""

    with monkeypatch.context() as patch:
        patch.setattr(Source, "__getitem__", fail)
        with pytest.raises(KeyboardInterrupt):
            Materialised(Source(), {})
    assert list(cache.iterdir()) == []
    source = Source()
    assert agrees(Materialised(source, {}), source)


@pytest.mark.parametrize("scale", [1.2, float("nan")])
def test_images_that_do_not_fit_eight_bits(cache: Path, scale: float) -> None:
    with pytest.raises(InputError, match=r"only images in \[-1, 1\]"):
        Materialised(Source(scale=scale), {})
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SACT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="SACT_CACHE"):
        Materialised(Source(), {})
