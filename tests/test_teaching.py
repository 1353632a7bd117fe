"""Teaching without labels: what changes, what does not, and how the share is met."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

import sact
from sact.data.photo_folder import BROKEN_IN_A_ROW, Photo, Views, read_photos
from sact.tasks.teaching import Lesson, Progress, teach

SPEC = {"name": "imagenet", "size": 64}


def picture(index: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    noise = np.random.default_rng(index).integers(0, 255, (size[1] // 10, size[0] // 10, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def photos(count: int = 6) -> list[Photo]:
    return [Photo(Path(f"{index}.png"), picture(index)) for index in range(count)]


def adapted(**options: Any) -> sact.AdaptedNetwork:
    torch.manual_seed(0)
    return sact.adapt(timm.create_model("mobilenetv2_035", num_classes=5).eval(), **options)


def views(length: int) -> Views:
    return Views(photos(), SPEC, length)


def tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("output", ["mean", "halted"])
def test_heads_alone_learn_to_stop(output: sact.block.OutputRule) -> None:
    model = adapted(output=output)
    before = tensors(model)
    images = torch.stack([views(8)[index] for index in range(8)])
    spent = model(images, return_ponder=True)[1].flops.sum()
    seen: list[Progress] = []
    teach(model, views(80), Lesson(tau=1.0, batch_size=8, lr=0.1), seen.append)
    assert model(images, return_ponder=True)[1].flops.sum() < spent
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all("score" in name for name in changed)
    assert [progress.step for progress in seen] == list(range(1, 11)) and seen[-1].steps == 10
    assert not model.training and all(parameter.requires_grad for parameter in model.parameters())


def test_a_wanted_share_steers_tau_both_ways() -> None:
    seen: list[Progress] = []
    model = adapted(output="halted")
    teach(model, views(80), Lesson(share=0.3, batch_size=8, lr=0.1), seen.append)
    assert seen[1].tau > 0.1 > seen[0].tau and seen[-1].share < seen[0].share
    teach(model, views(16), Lesson(share=1.0, batch_size=8, lr=0.1), seen.append)
    assert seen[-1].tau == 0.0


def test_without_a_cost_fresh_heads_do_not_move_the_output() -> None:
    """The teacher is the network itself: at tau 0 a network that runs every unit has nothing to learn."""
    model = adapted(output="halted")
    images = torch.stack([views(4)[index] for index in range(4)])
    teach(model, views(16), Lesson(tau=0.0, batch_size=8))
    wanted = sact.restore(model)(images)
    torch.testing.assert_close(model(images), wanted)


@pytest.mark.parametrize("learn", ["norms", "all"])
def test_more_than_heads_can_learn(learn: Any) -> None:
    model = adapted()
    before = tensors(model)
    teach(model, views(32), Lesson(tau=0.1, batch_size=8, learn=learn))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    own = {name for name in changed if "score" not in name}
    assert own and not any("running" in name for name in own)
    weights = {name for name in own if model.state_dict()[name].dim() > 1}
    assert bool(weights) == (learn == "all")


def test_frozen_parameters_stay_frozen_afterwards() -> None:
    model = adapted()
    parameter = next(model.parameters()).requires_grad_(False)
    teach(model, views(8), Lesson(tau=0.1, batch_size=8))
    assert not parameter.requires_grad


def test_the_same_seed_teaches_the_same() -> None:
    models = [adapted(), adapted()]
    for model in models:
        teach(model, views(16), Lesson(tau=0.1, batch_size=8))
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "either tau"),
        ({"tau": 0.1, "share": 0.5}, "either tau"),
        ({"tau": -1.0}, "tau is -1.0"),
        ({"tau": float("nan")}, "tau is nan"),
        ({"share": 0.0}, "share is 0.0"),
        ({"share": 1.5}, "share is 1.5"),
        ({"tau": 0.1, "learn": "head"}, 'learn is "head"'),
        ({"tau": 0.1, "views": 0}, "views is 0"),
        ({"tau": 0.1, "lr": -1.0}, "lr is -1.0"),
    ],
)
def test_a_lesson_is_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(sact.InputError, match=message):
        Lesson(**fields)


def test_what_cannot_be_taught() -> None:
    with pytest.raises(sact.InputError, match='halting is "none"'):
        teach(adapted(halting="none"), views(8), Lesson(tau=0.1, batch_size=8))
    with pytest.raises(sact.InputError, match="batch of 16"):
        teach(adapted(), views(8), Lesson(tau=0.1, batch_size=16))
    features = sact.adapt(timm.create_model("mobilenetv2_035", features_only=True).eval())
    with pytest.raises(sact.InputError, match="features"):
        teach(features, views(8), Lesson(tau=0.1, batch_size=8))


def test_views_are_the_same_each_time_and_differ_from_each_other() -> None:
    data = views(12)
    assert len(data) == 12 and data[3].shape == (3, 64, 64)
    state = torch.random.get_rng_state()
    assert torch.equal(data[3], views(12)[3])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(data[3], data[9])
    with pytest.raises(IndexError):
        data[12]


def write(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        picture(index).save(folder / f"photo{index}.png")


def test_photographs_are_split_by_content(tmp_path: Path) -> None:
    write(tmp_path / "one" / "deeper", 10)
    found = read_photos([tmp_path / "one"], 64)
    assert len(found.held_out) == 2 and len(found.train) == 8 and not found.broken
    for path in (tmp_path / "one" / "deeper").iterdir():
        path.rename(path.with_name(f"renamed-{path.name}"))
    again = read_photos([tmp_path / "one"], 64)
    assert [one.picture.tobytes() for one in again.held_out] == [one.picture.tobytes() for one in found.held_out]


def test_large_photographs_are_reduced_and_many_are_sampled(tmp_path: Path) -> None:
    write(tmp_path, 9)
    picture(1, (900, 700)).save(tmp_path / "large.png")
    found = read_photos([tmp_path], 64)
    assert max(min(one.picture.size) for one in [*found.train, *found.held_out]) == 112
    assert len(read_photos([tmp_path], 64, limit=5).train) == 4


def test_broken_files_are_named_and_twenty_in_a_row_stop(tmp_path: Path) -> None:
    write(tmp_path / "some", 4)
    (tmp_path / "some" / "broken.jpg").write_bytes(b"no picture")
    found = read_photos([tmp_path / "some"], 64)
    assert [path.name for path, _ in found.broken] == ["broken.jpg"] and len(found.train) + len(found.held_out) == 4
    write(tmp_path / "many", 4)
    for index in range(BROKEN_IN_A_ROW):
        (tmp_path / "many" / f"broken{index:02}.jpg").write_bytes(b"no picture")
    with pytest.raises(sact.InputError, match=r"20 image files in a row are broken, the last is .*broken19"):
        read_photos([tmp_path / "many"], 64)


def test_folders_without_photographs(tmp_path: Path) -> None:
    with pytest.raises(sact.InputError, match="no folder"):
        read_photos([tmp_path / "missing"], 64)
    with pytest.raises(sact.InputError, match="holds no image"):
        read_photos([tmp_path], 64)
    write(tmp_path, 1)
    with pytest.raises(sact.InputError, match="1 photographs could be read"):
        read_photos([tmp_path], 64)


def test_copies_teach_apart() -> None:
    model = adapted()
    other = copy.deepcopy(model)
    teach(other, views(8), Lesson(tau=0.1, batch_size=8, learn="all"))
    assert all(
        torch.equal(own, theirs)
        for own, theirs in zip(model.state_dict().values(), tensors(adapted()).values(), strict=True)
    )
