"""`sact.flops_report`: the paper's numbers, and bounds that real images keep."""

from __future__ import annotations

import pytest
import torch

import sact
from sact.flops_report import count


def test_the_papers_numbers() -> None:
    with torch.device("meta"):
        resnet, cifar = sact.create_model("resnet101", num_classes=1001), sact.create_model("cifar_resnet110")
    report = count(resnet, (224, 224))
    assert report["plain"] == report["most"] == report["fewest"] == 15_602_814_976
    assert count(cifar, (32, 32))["plain"] == 505_775_360


@pytest.mark.parametrize("name", ["resnet", "cifar_resnet"])
@pytest.mark.parametrize("kind", ["none", "act", "sact"])
def test_totals_and_bounds(make_model, name: str, kind: str) -> None:
    model = make_model(name, halting=kind, units=[3, 2], base_channels=4, num_classes=5)
    report = count(model, (40, 36))
    for key in ("plain", "most", "fewest"):
        assert report[key] == report["fixed"] + sum(block[key] for block in report["blocks"])
    with torch.no_grad():
        _, ponder = model(torch.randn(8, 3, 40, 36), return_ponder=True)
    assert report["plain"] == ponder.dense_flops
    assert report["fixed"] == ponder.fixed_flops
    assert all(report["fewest"] <= flops <= report["most"] for flops in ponder.flops.tolist())
    if kind == "none":
        assert report["fewest"] == report["plain"] == report["most"]
    else:
        assert report["fewest"] < report["plain"] < report["most"]


@pytest.mark.parametrize(("bias", "key"), [(-100.0, "most"), (100.0, "fewest")])
@pytest.mark.parametrize("kind", ["act", "sact"])
def test_the_bounds_are_reached(make_model, kind: str, bias: float, key: str) -> None:
    model = make_model("resnet", halting=kind, units=[3, 2], base_channels=4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "score" in name and name.endswith("conv.bias"):
                parameter.fill_(bias)
        _, ponder = model(torch.randn(2, 3, 32, 48), return_ponder=True)
    assert ponder.flops.tolist() == [count(model, (32, 48))[key]] * 2


def test_counting_leaves_the_network_alone(make_model) -> None:
    model = make_model("cifar_resnet", halting="sact", units=[2], base_channels=4).train()
    count(model, (32, 32))
    assert model.training
    assert next(model.parameters()).device.type == "cpu"


def test_sizes_that_are_too_small() -> None:
    with pytest.raises(sact.InputError, match="at least 32"):
        count(sact.create_model("cifar_resnet20"), (31, 64))
