"""`sact.calibrate`, `model.budget` and the shift of the scores that they set."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from conftest import NATIVE, MakeModel, has_native, needs_triton
from PIL import Image
from test_engines import check_same, run
from torch import Tensor, nn

import sact
from sact.budget import Calibration
from sact.data import Scenes
from sact.engines import triton

KINDS = ["sact", "act"]
ENGINES = ["masked", "gather", NATIVE]


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def small(make_model: MakeModel):
    """A network of two blocks in which halting varies."""

    def make(kind: str = "sact", seed: int = 0, name: str = "resnet") -> sact.Network:
        return make_model(name, seed=seed, halting=kind, units=[4, 3], base_channels=16, num_classes=5)

    return make


@pytest.fixture(scope="module")
def scenes() -> tuple[sact.Network, Tensor, Tensor]:
    """The packaged network, scenes to calibrate with and others of the same photographs."""
    model = sact.from_pretrained("scenes")
    data = Scenes("test", size=64, length=128, scale=(0.35, 0.75))
    pictures = torch.stack([data[index][0] for index in range(len(data))])
    sact.calibrate(model, pictures[:64])
    return model, pictures[:64], pictures[64:]


@torch.inference_mode()
def mean_share(model: sact.Network | sact.compiled.CompiledNetwork, batch: Tensor) -> float:
    ponder = model(batch, return_ponder=True)[1]
    return float((ponder.flops.double() / ponder.dense_flops).mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ENGINES)
@torch.no_grad()
def test_the_default_changes_nothing(small, kind: str, engine: str) -> None:
    """To the bit: an untouched network, one whose budget was set and taken away, and one that was calibrated."""
    untouched, model, batch = small(kind), small(kind), images(2, 3, 32, 33)
    expected, expected_ponder = sact.compile(untouched, engine)(batch, return_ponder=True)
    fast = sact.compile(model, engine)
    sact.calibrate(model, images(4, 3, 32, 33, seed=2), steps=2)
    model.budget = min(1.0, (model.calibration.least + model.calibration.most) / 2)
    changed = fast(batch)
    model.budget = None
    output, ponder = fast(batch, return_ponder=True)
    assert torch.equal(output, expected) and not torch.equal(changed, expected)
    for ours, theirs in zip(ponder.blocks, expected_ponder.blocks, strict=True):
        assert torch.equal(ours.units, theirs.units) and torch.equal(ours.cost, theirs.cost)


@torch.no_grad()
def test_without_a_shift_nothing_is_added(small, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    add = Tensor.__add__
    monkeypatch.setattr(Tensor, "__add__", lambda a, b: seen.append(b) or add(a, b))
    for shift in (0.0, 0.25):
        sact.scores.to_score(torch.zeros(3), shift)
        assert seen == ([0.25] if shift else [])


@pytest.mark.parametrize("shift", [-1.5, 4.0, math.inf, -math.inf])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["resnet", "cifar_resnet"])
@torch.no_grad()
def test_all_engines_obey_a_shift(small, name: str, kind: str, shift: float) -> None:
    model, batch = small(kind, name=name), images(3, 3, 33, 40)
    frozen = [sact.compile(model, engine, freeze=True) for engine in available()]
    before = [run(fast, batch) for fast in frozen]  # which promised to leave weights alone, not the budget
    for block in model.blocks:
        block.score_shift = shift
    expected = run(model, batch)
    for fast in [*frozen, *(sact.compile(model, engine) for engine in available())]:
        check_same(run(fast, batch), expected)
    assert not torch.equal(expected[1].flops, before[0][1].flops), "the shift changes what is spent"
    if math.isinf(shift):
        assert all((block.units == (1 if shift > 0 else block.max_units)).all() for block in expected[1].blocks)


def available() -> list[str]:
    """The engines that work here, Triton's interpreter left out: it is slow and has tests of its own."""
    return ["masked", "gather", *(["native"] if has_native() else [])]


@pytest.mark.parametrize("kind", KINDS)
def test_a_shift_moves_the_logit(small, kind: str) -> None:
    """The definition: sigmoid(logit + shift), in float32 or wider."""
    head, x = small(kind).blocks[0].scores[0].double(), images(2, 64, 6, 5).double()
    scores = head(x)
    torch.testing.assert_close(head(x, 0.7), torch.sigmoid(torch.logit(scores) + 0.7))


def test_calibration_covers_the_reachable_range(scenes) -> None:
    model, known, _ = scenes
    calibration = model.calibration
    assert calibration.images == len(known) and calibration.image_size == (64, 64)
    assert list(calibration.shifts) == sorted(calibration.shifts) and 0.0 in calibration.shifts
    assert list(calibration.shares) == sorted(calibration.shares, reverse=True)
    extent = calibration.most - calibration.least
    gaps = [a - b for a, b in zip(calibration.shares, calibration.shares[1:], strict=False)]
    assert max(gaps) <= extent / 32 + 1e-9
    for shift, reached in ((math.inf, calibration.least), (-math.inf, calibration.most)):
        assert reached == pytest.approx(with_shift(model, shift, known), abs=0.006 * extent)
    trained = calibration.shares[calibration.shifts.index(0.0)]
    assert trained == pytest.approx(mean_share(model, known), abs=1e-4)
    assert calibration.shift_for(trained) == pytest.approx(0.0, abs=1e-9)


def with_shift(model: sact.Network, shift: float, batch: Tensor) -> float:
    before = [block.score_shift for block in model.blocks]
    for block in model.blocks:
        block.score_shift = shift
    share = mean_share(sact.compile(model), batch)
    for block, old in zip(model.blocks, before, strict=True):
        block.score_shift = old
    return share


def test_budgets_are_met_on_held_out_images(scenes) -> None:
    model, known, held_out = scenes
    fast, shares = sact.compile(model), []
    budgets = [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    for budget in budgets:
        fast.budget = budget
        assert model.budget == fast.budget == budget
        assert mean_share(fast, known) == pytest.approx(budget, abs=0.01)
        shares.append(mean_share(fast, held_out))
        assert shares[-1] == pytest.approx(budget, abs=0.02)
    assert shares == sorted(shares), "more budget is more computation"
    fast.budget = None
    assert [block.score_shift for block in model.blocks] == [0.0] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_calibrating_leaves_the_network_as_it_was(small, kind: str) -> None:
    model = small(kind).train()
    model.blocks[0].eval()
    model.cap = 0.9
    modes = [module.training for module in model.modules()]
    weights = copy.deepcopy(model.state_dict())
    calibration = sact.calibrate(model, images(4, 3, 32, 32), steps=4)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert model.cap == 0.9 and model.budget is None and model.calibration is calibration
    assert all(block.score_shift == 0.0 for block in model.blocks)
    assert calibration.most > 0.9, "the cap does not count"


def test_a_budget_stays_through_another_calibration(small) -> None:
    model = small()
    first = sact.calibrate(model, images(4, 3, 32, 32), steps=4)
    model.budget = (first.least + first.most) / 2
    before = model.blocks[0].score_shift
    second = sact.calibrate(model, images(4, 3, 64, 64, seed=3), steps=4)
    assert model.budget == (first.least + first.most) / 2
    assert model.blocks[0].score_shift == pytest.approx(second.shift_for(model.budget)) != before
    model.calibration = Calibration((0.0, 1.0), (0.2, 0.1), (0.0, 0.0), 1)  # as if weights had been others
    model.budget = 0.15
    with pytest.warns(UserWarning, match=r"budget is 0\.15, .* it is None now"):
        sact.calibrate(model, images(4, 3, 32, 32), steps=2)
    assert model.budget is None and model.blocks[0].score_shift == 0.0


def test_images_come_as_tensors_batches_pairs_and_files(small, tmp_path: Path) -> None:
    model, batch = small(), images(5, 3, 32, 32).clamp(-1, 1)
    expected = sact.calibrate(model, batch, steps=2)
    assert sact.calibrate(model, batch, steps=2, batch_size=2).shares == pytest.approx(expected.shares, abs=1e-6)
    labelled = [(batch[:3], torch.zeros(3)), (batch[3:], torch.zeros(2))]
    assert sact.calibrate(model, iter(labelled), steps=2).shares == pytest.approx(expected.shares, abs=1e-6)
    mixed = sact.calibrate(sact.compile(model, "masked"), [batch, images(1, 3, 40, 32)], steps=2)
    assert mixed.images == 6 and mixed.image_size is None
    for number in range(3):
        pixels = (images(32, 40, 3, seed=number) * 50 + 128).clamp(0, 255).byte().numpy()
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    with pytest.raises(sact.InputError, match=r"set model\.preprocessing"):
        sact.calibrate(model, tmp_path)
    model.preprocessing = {"name": "scenes", "size": 32}
    of_folder = sact.calibrate(model, tmp_path, steps=2)
    assert of_folder.images == 3 and of_folder.image_size == (32, 32)
    assert sact.calibrate(model, sorted(tmp_path.iterdir()), steps=2) == of_folder


def test_calibration_and_budget_travel_with_the_weights(small, tmp_path: Path) -> None:
    model, batch = small(), images(2, 3, 32, 32)
    calibration = sact.calibrate(model, images(4, 3, 32, 32, seed=2), steps=4)
    model.budget, model.cap = (calibration.least + calibration.most) / 2, 0.9
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["calibration"]["images"] == 4 and config["budget"] == model.budget and config["cap"] == 0.9
    loaded = sact.from_pretrained(tmp_path)
    assert loaded.calibration == calibration and loaded.budget == model.budget and loaded.cap == 0.9
    check_same(run(loaded, batch), run(model, batch))
    assert copy.deepcopy(loaded).budget == model.budget
    for other in (sact.from_pretrained(tmp_path, eps=0.05), sact.from_pretrained(tmp_path, halting="none")):
        assert other.calibration is None and other.budget is None and other.cap is None
    config["calibration"]["shares"].reverse()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(sact.CheckpointError, match="calibration is not usable"):
        sact.from_pretrained(tmp_path)


def test_uncalibrated_networks_are_saved_as_before(small, tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    assert not {"calibration", "budget", "cap"} & set(json.loads((tmp_path / "config.json").read_text()))


@pytest.mark.parametrize("value", [0, -0.1, 1.01, math.nan, math.inf, True, "0.5", [0.5]])
def test_impossible_budgets_are_refused(small, value: object) -> None:
    model = small()
    sact.calibrate(model, images(2, 3, 32, 32), steps=2)
    with pytest.raises(sact.InputError, match=r"budget is .*, but it must be a share of the dense FLOPs"):
        model.budget = value
    assert model.budget is None


def test_budgets_out_of_reach_are_refused(small, scenes) -> None:
    model = small()
    with pytest.raises(sact.InputError, match=r"budget is 0\.6, .*run sact\.calibrate"):
        model.budget = 0.6
    plain = sact.create_model("resnet", units=[2], base_channels=4, num_classes=2)
    with pytest.raises(sact.InputError, match="a plain network .* takes no budget"):
        plain.budget = 0.6
    with pytest.raises(sact.InputError, match="a plain network .* takes no calibration"):
        sact.calibrate(plain, images(2, 3, 32, 32))
    calibrated = scenes[0]
    with pytest.raises(sact.InputError, match=r"budget is 0\.1, but this network spends 0\.3\d* to 1\.0\d*"):
        calibrated.budget = 0.1
    model.calibration = Calibration((0.0, 1.0), (0.8, 0.6), (0.1, 0.1), 10)
    with pytest.raises(sact.InputError, match=r"budget is 0\.9, but this network spends 0\.6 to 0\.8 of"):
        model.budget = 0.9
    model.budget = 0.65
    with pytest.raises(sact.InputError):
        model.budget = 0.9
    assert model.budget == 0.65, "a refused budget changes nothing"
    assert model.blocks[0].score_shift == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("images_", "options", "message"),
    [
        ([], {}, "no images to calibrate with"),
        (7, {}, "images is int"),
        (torch.zeros(3, 32, 32), {}, r"tensor \[N, C, H, W\]"),
        (torch.zeros(1, 1, 32, 32), {}, "images have 1 channels"),
        ("/nowhere", {}, "there is no image /nowhere"),
        (torch.zeros(1, 3, 32, 32), {"steps": 1}, "steps is 1"),
        (torch.zeros(1, 3, 32, 32), {"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_unusable_calls_are_refused(small, images_: object, options: dict[str, int], message: str) -> None:
    with pytest.raises(sact.InputError, match=message):
        sact.calibrate(small(), images_, **options)


def test_networks_without_choice_are_refused(make_model: MakeModel) -> None:
    model = make_model(halting="act", units=[1, 1], base_channels=4, num_classes=2)
    with pytest.raises(sact.InputError, match="nothing to calibrate"):
        sact.calibrate(model, images(2, 3, 32, 32))
    with pytest.raises(sact.InputError, match="calibrate takes a network, got Linear"):
        sact.calibrate(nn.Linear(2, 2), images(2, 3, 32, 32))


@pytest.mark.parametrize(
    ("shifts", "shares"),
    [
        ((0.0,), (0.5,)),
        ((0.0, 1.0), (0.5, 0.6)),
        ((1.0, 0.0), (0.6, 0.5)),
        ((0.0, 1.0), (0.5, 0.5)),
        ((0.0, 1.0), (1.0,)),
    ],
)
def test_calibrations_must_fall(shifts: tuple[float, ...], shares: tuple[float, ...]) -> None:
    with pytest.raises(sact.InputError, match="calibration is not usable"):
        Calibration(shifts, shares, (0.0,) * len(shares), 1)


def test_shares_are_looked_up_piece_by_piece() -> None:
    calibration = Calibration((-2.0, 0.0, 1.0, 4.0), (1.0, 0.8, 0.8, 0.5), (0.0,) * 4, 3)
    for share, shift in ((1.0, -2.0), (0.9, -1.0), (0.65, 2.5), (0.5, 4.0)):
        assert calibration.shift_for(share) == pytest.approx(shift)
    assert 0.0 <= calibration.shift_for(0.8) <= 1.0
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration


class StandIn:
    """For a graph: remembers the shift that it was made under."""

    made = waited = 0

    def __init__(self, images: Tensor, call) -> None:
        StandIn.made += 1
        self.result = call(images)

    def replay(self, images: Tensor):
        return self.result

    def wait(self) -> None:
        StandIn.waited += 1


@needs_triton
@torch.no_grad()
def test_graphs_are_kept_per_shift(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A captured network notices the knob; the oldest graphs of other shifts make room."""
    monkeypatch.setattr(triton, "Graph", StandIn)
    monkeypatch.setattr(triton, "on_gpu", lambda images: True)
    monkeypatch.setattr(triton, "OBSERVED_CALLS", 1)
    monkeypatch.setattr(triton, "MAX_GRAPHS", 2)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(StandIn, "made", 0)
    monkeypatch.setattr(StandIn, "waited", 0)
    model, batch = make_model(halting="sact", units=[3], base_channels=4, num_classes=2), images(1, 3, 32, 32)
    fast = sact.compile(model, "triton", freeze=True)
    for shift in (0.0, 3.0, 0.0, -3.0):
        model.blocks[0].score_shift = shift
        expected = run(model, batch)
        for _ in range(1 if shift == 0.0 and StandIn.made else 3):
            check_same(run(fast, batch), expected)
    assert StandIn.made == 3 and StandIn.waited == 1
