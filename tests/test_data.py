"""Data sets: scenes above all. Stand-ins for photographs and Fashion-MNIST make these independent of the machine."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from sact.data import create_dataset, find_photographs, list_datasets
from sact.data.fashion_mnist import load_items, read_idx
from sact.data.photographs import load_photographs, split_names
from sact.data.scenes import Scenes, cut_out
from sact.errors import InputError
from sact.files import replacing
from sact.preprocessing import preprocess


def write_idx(path: Path, values: np.ndarray) -> None:
    head = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(head + values.tobytes()))


def noise(height: int, width: int, seed: int) -> Image.Image:
    """A picture with structure at several scales, as photographs have."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for cells in (3, 12, 48):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 3
    return Image.fromarray(total.astype(np.uint8))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of 12 background pictures and of 60 + 20 items: bright shapes with a soft edge on an empty ground."""
    root = tmp_path_factory.mktemp("data")
    backgrounds, items = root / "photographs", root / "items"
    backgrounds.mkdir()
    items.mkdir()
    for index in range(12):
        noise(300, 420, index).save(backgrounds / f"photo{index}.jpg")
    rng = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 20)):
        images = np.zeros((count, 28, 28), np.uint8)
        for image in images:
            top, left = rng.integers(0, 8, 2)
            bottom, right = rng.integers(18, 28, 2)
            image[top:bottom, left:right] = rng.integers(120, 256, (bottom - top, right - left))
        write_idx(items / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(items / f"{part}-labels-idx1-ubyte.gz", (np.arange(count) % 10).astype(np.uint8))
    return backgrounds, items


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACT_CACHE", str(tmp_path / "cache"))


def scenes(folders: tuple[Path, Path], split: str = "train", **options: object) -> Scenes:
    return Scenes(split, backgrounds=folders[0], items=folders[1], **options)  # type: ignore[arg-type]


def same(one: tuple, other: tuple) -> bool:
    return torch.equal(one[0], other[0]) and int(one[1]) == int(other[1]) and torch.equal(one[2], other[2])


def test_scene_shape_and_range(folders: tuple[Path, Path]) -> None:
    data = scenes(folders, size=64)
    image, label, mask = data[0]
    assert image.shape == (3, 64, 64) and image.dtype == torch.float32 and image.is_contiguous()
    assert isinstance(label, int) and mask.shape == (64, 64) and mask.dtype == torch.bool
    stack = torch.stack([data[i][0] for i in range(len(data))])
    assert stack.min() >= -1 and stack.max() <= 1 and stack.std() > 0.1
    assert data.num_classes == len(data.class_names) == 10


def test_scenes_do_not_depend_on_order_or_instance(folders: tuple[Path, Path]) -> None:
    data = scenes(folders, length=20, seed=5)
    forward = [data[i] for i in range(20)]
    np.random.seed(1)
    torch.manual_seed(1)
    again = scenes(folders, length=500, seed=5)
    for i in reversed(range(20)):
        assert same(forward[i], again[i])
    assert same(data[-1], forward[19])


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_scenes_do_not_depend_on_workers(folders: tuple[Path, Path], start: str) -> None:
    data = scenes(folders, length=9, size=32)
    loader = DataLoader(data, batch_size=2, num_workers=2 if start == "fork" else 1, multiprocessing_context=start)
    batches = list(loader)
    for k in range(3):
        joined = torch.cat([batch[k] for batch in batches])
        assert torch.equal(joined, torch.stack([torch.as_tensor(data[i][k]) for i in range(9)]))


def test_seeds_splits_and_indices_differ(folders: tuple[Path, Path]) -> None:
    data = scenes(folders)
    assert not torch.equal(data[0][0], data[1][0])
    other = scenes(folders, seed=1)
    assert not torch.equal(data[0][0], other[0][0])
    assert not torch.equal(scenes(folders, "val")[0][0], scenes(folders, "test")[0][0])
    # Beyond the number of items the items come again, in other scenes.
    long = scenes(folders, length=1000)
    assert long[0][1] == long[len(data)][1] and not torch.equal(long[0][2], long[len(data)][2])


def test_every_item_is_used_once(folders: tuple[Path, Path]) -> None:
    data = scenes(folders, "test")
    assert sorted(label for _, label, _ in data) == sorted(list(range(10)) * 2)


def test_splits_share_no_photograph_and_no_item(folders: tuple[Path, Path]) -> None:
    names = [set(scenes(folders, split).photographs) for split in ("train", "val", "test")]
    assert all(names) and sum(map(len, names)) == len(set.union(*names)) == 12
    train, val = (load_items(split, folders[1])[0] for split in ("train", "val"))
    assert len(train) + len(val) == 60


@pytest.mark.parametrize(("small", "large"), [(64, 192), (33, 97)])
def test_same_composition_at_two_sizes(folders: tuple[Path, Path], small: int, large: int) -> None:
    coarse, fine = scenes(folders, size=small), scenes(folders, size=large)
    overlaps, differences = [], []
    for i in range(30):
        (a, label_a, mask_a), (b, label_b, mask_b) = coarse[i], fine[i]
        assert label_a == label_b
        shrunk = torch.nn.functional.interpolate(
            torch.cat([b, mask_b[None].float()])[None], size=(small, small), mode="bilinear", antialias=True
        )[0]
        down = shrunk[3] > 0.5
        overlaps.append(float((down & mask_a).sum() / (down | mask_a).sum()))
        differences.append(float((shrunk[:3] - a).abs().mean()))
    assert min(overlaps) > 0.6 and np.mean(overlaps) > 0.85
    assert np.mean(differences) < 0.08


def test_mask_is_where_the_object_is(folders: tuple[Path, Path]) -> None:
    # On a flat photograph whatever differs is the object.
    data = scenes(folders)
    flat = [Image.new("RGB", (512, 512), (90, 120, 100))]
    data._pyramids = [flat]
    for i in range(20):
        image, _, mask = data[i]
        background = image[:, ~torch.nn.functional.max_pool2d(mask[None].float(), 5, 1, 2)[0].bool()]
        assert (background - background[:, :1]).abs().max() < 1e-6
        object_ = image[:, mask].mean(0)
        assert (object_ - background[:, 0].mean()).abs().mean() > 0.15


def test_scale_sets_the_size_of_objects(folders: tuple[Path, Path]) -> None:
    def sides(scale: tuple[float, float]) -> list[float]:
        data = scenes(folders, scale=scale, length=40)
        return [max(int(m.any(0).sum()), int(m.any(1).sum())) / 96 for m in (data[i][2] for i in range(40))]

    assert max(sides((0.2, 0.25))) < 0.3
    assert min(sides((0.9, 1.0))) > 0.4


def test_cut_out_fills_holes_and_leaves_bays() -> None:
    image = np.zeros((2, 28, 28), np.uint8)
    image[0, 5:20, 5:20] = 200
    image[0, 8:12, 8:12] = 0
    image[1, 5:20, 5:20] = 200
    image[1, 8:12, 8:20] = 0
    cut = cut_out(image)
    assert cut[0].sum() == 225
    assert cut[1].sum() == 225 - 4 * 12
    assert cut_out(np.full((1, 28, 28), 255, np.uint8)).all() and not cut_out(np.zeros((1, 28, 28), np.uint8)).any()


def test_scene_pictures_can_be_preprocessed(folders: tuple[Path, Path]) -> None:
    data = scenes(folders, size=48)
    image = data[0][0]
    stored = ((image + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert torch.allclose(preprocess(stored, data.preprocessing), image, atol=0.01)


@pytest.mark.parametrize(
    "options",
    [{"size": 31}, {"size": 96.0}, {"length": 0}, {"seed": -1}, {"scale": (0.5, 0.2)}, {"scale": (0.0, 0.2)}, {"split":
    "dev"},
     {"backgrounds": "/nowhere"}, {"items": "/nowhere"}],
)  # fmt: skip
def test_bad_options(folders: tuple[Path, Path], options: dict) -> None:
    with pytest.raises(InputError):
        Scenes(**{"backgrounds": folders[0], "items": folders[1], **options})


def test_index_out_of_range(folders: tuple[Path, Path]) -> None:
    with pytest.raises(IndexError):
        scenes(folders, length=3)[3]


def test_too_few_photographs(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only 0 photographs"):
        Scenes(backgrounds=tmp_path, items=folders[1])


def test_split_by_name_is_stable() -> None:
    few, many = ([f"picture{i}" for i in range(n)] for n in (40, 400))
    before, after = split_names(few), split_names(many)
    for split in ("train", "val", "test"):
        assert set(before[split]) <= set(after[split])
    assert 0.5 < len(after["train"]) / 400 < 0.7
    tiny = split_names(["a", "b", "c"])
    assert sorted(name for names in tiny.values() for name in names) == ["a", "b", "c"] and all(tiny.values())
    with pytest.raises(InputError):
        split_names(["a", "b"])


def test_sizes_of_one_picture_count_once(tmp_path: Path) -> None:
    images = tmp_path / "Autumn" / "contents" / "images"
    images.mkdir(parents=True)
    for side in (200, 100, 120):
        noise(side, side * 2, 0).save(images / f"{side * 2}x{side}.jpg")
    noise(100, 120, 1).save(tmp_path / "other_120x100.png")
    noise(32, 32, 2).save(tmp_path / "icon.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    found = find_photographs(tmp_path)
    assert {name: file.name for name, file in found.items()} == {"Autumn": "400x200.jpg", "other": "other_120x100.png"}


def test_damaged_and_repeated_backgrounds_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i in range(5):
        noise(100, 150, i).save(folder / f"{i}.png")
    noise(100, 150, 0).resize((90, 70)).save(folder / "again.png")
    (folder / "broken.jpg").write_bytes(b"nothing")
    whole = (folder / "0.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning):
        names = [p.name for split in ("train", "val", "test") for p in load_photographs(split, folder)]
    assert sorted(names) in (["0", "1", "2", "3", "4"], ["1", "2", "3", "4", "again"])


def test_photographs_are_cached(tmp_path: Path) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i in range(4):
        noise(100, 150, i).save(folder / f"{i}.png")
    first = load_photographs("train", folder, side=64)
    cached = sorted((tmp_path / "cache" / "photographs").iterdir())
    assert len(cached) == 4 and all(file.suffix == ".npy" and ".tmp" not in file.name for file in cached)
    assert min(first[0].pixels.shape[:2]) == 64
    for file in cached:
        file.write_bytes(b"damaged")
    from sact.data import photographs

    photographs._load_all.cache_clear()
    again = load_photographs("train", folder, side=64)
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(first, again, strict=True))


def test_replacing_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "file.npy"
    target.write_text("old")
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and list(tmp_path.glob("*.tmp*")) == []
    with replacing(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"


def test_fashion_mnist(folders: tuple[Path, Path]) -> None:
    data = create_dataset("fashion_mnist", "test", size=32, data_dir=folders[1])
    image, label = data[3]
    assert len(data) == 20 and image.shape == (3, 32, 32) and label == 3 and image.min() >= -1 and image.max() <= 1
    assert torch.equal(create_dataset("fashion_mnist", "test", data_dir=folders[1], length=5)[4][0], data[4][0])
    training = create_dataset("fashion_mnist", "train", data_dir=folders[1], train=True)
    assert training[0][0].shape == (3, 32, 32)


@pytest.mark.parametrize("damage", ["gzip", "short", "header"])
def test_damaged_idx(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "x.gz"
    write_idx(file, np.zeros((2, 28, 28), np.uint8))
    data = file.read_bytes()
    plain = gzip.decompress(data)
    file.write_bytes({"gzip": data[:-12], "short": gzip.compress(plain[:-1]), "header": gzip.compress(b"abc")}[damage])
    with pytest.raises(InputError, match=r"x\.gz"):
        read_idx(file)


def test_imagenet_folders(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    for split in ("train", "val"):
        for kind in ("n01", "n02"):
            (tmp_path / split / kind).mkdir(parents=True)
            for i in range(3):
                noise(40, 50, i).save(tmp_path / split / kind / f"{i}.JPEG")
    data = create_dataset("imagenet", "val", size=32, data_dir=tmp_path, label_offset=1)
    assert len(data) == 6 and data.num_classes == 3 and data.class_names == ("background", "n01", "n02")
    image, label = data[5]
    assert label == 2 and torch.equal(image, preprocess(noise_file(tmp_path), {"name": "imagenet_sact", "size": 32}))
    assert [label for _, label in (create_dataset("imagenet", "val", 32, tmp_path, length=2)[i] for i in (0, 1))] == [
        0,
        1,
    ]
    augmented = create_dataset("imagenet", "train", 32, tmp_path, train=True)[0][0]
    assert augmented.shape == (3, 32, 32) and augmented.min() >= -1 and augmented.max() <= 1
    with pytest.raises(InputError, match="label_offset"):
        create_dataset("imagenet", "val", 32, tmp_path, label_offset=2)
    with pytest.raises(InputError, match="cannot be downloaded"):
        create_dataset("imagenet", "val")


def noise_file(root: Path) -> Path:
    return root / "val" / "n02" / "2.JPEG"


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")

    class Stored:
        classes = ("a", "b")

        def __init__(self, root: str, train: bool, download: bool) -> None:
            count = 5010 if train else 10
            self.data = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
            self.targets = [i % 2 for i in range(count)]

    monkeypatch.setattr(datasets, "CIFAR10", Stored)
    data = create_dataset("cifar10", "val", data_dir=tmp_path)
    assert len(data) == 5000 and len(create_dataset("cifar10", "train", data_dir=tmp_path)) == 10
    assert len(create_dataset("cifar10", "train", data_dir=tmp_path, whole=True)) == 5010
    image, _ = data[0]
    assert image.shape == (3, 32, 32) and image.mean().abs() < 1e-4
    augmented = create_dataset("cifar10", "train", data_dir=tmp_path, train=True)[3][0]
    assert augmented.shape == (3, 32, 32) and augmented.mean().abs() < 1e-4
    assert sum(1 for _ in create_dataset("cifar10", "test", data_dir=tmp_path)) == 10


def test_unknown_names_are_refused(folders: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match=", ".join(list_datasets())):
        create_dataset("mnist")
    with pytest.raises(InputError, match="no option scael; it has backgrounds, items, scale"):
        create_dataset("scenes", scael=(0.1, 0.2))
    data = create_dataset("scenes", "val", size=40, data_dir=folders[0], seed=3, length=7, items=folders[1])
    assert len(data) == 7 and data[6][0].shape == (3, 40, 40) and data.preprocessing == {"name": "scenes", "size": 40}
