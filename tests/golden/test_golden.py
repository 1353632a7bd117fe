"""Against outputs of the authors' original code; see ../shared/golden/README.md for the cases and tolerances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NATIVE

import sact
from sact import halting
from sact.tf_checkpoints import tf_name

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
CASES = ["cifar_sact_2", "cifar_act_3", "cifar_vanilla_2", "imagenet_sact_tiny_even", "imagenet_vanilla_tiny"]

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden vectors are not beside this checkout")


def load(case: str) -> tuple[sact.Network, dict[str, np.ndarray], torch.Tensor]:
    model = sact.import_tf_checkpoint(GOLDEN / case / "ckpt")
    with np.load(GOLDEN / case / "golden.npz") as file:
        golden = dict(file)
    return model, golden, torch.from_numpy(golden["inputs"]).permute(0, 3, 1, 2).contiguous()


def scope(model: sact.Network, block: int) -> str:
    return f"block_{block + 1}" if model.config.family == "cifar_resnet" else f"block{block + 1}"


def close(ours: torch.Tensor, theirs: np.ndarray, atol: float = 1e-4) -> None:
    np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=0, atol=atol)


def close_states(ours: torch.Tensor, theirs: np.ndarray) -> None:
    close(ours.permute(0, 2, 3, 1), theirs, atol=1e-4 * float(np.abs(theirs).max()))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("engine", ["definition", "masked", "gather", NATIVE])
def test_outputs(case: str, engine: str) -> None:
    model, golden, images = load(case)
    run = model if engine == "definition" else sact.compile(model, engine=engine)
    with torch.no_grad():
        logits, ponder = run(images, return_ponder=True, return_halting_distribution=True)
    close(logits, golden["logits"])
    assert ponder.flops.tolist() == golden["flops_per_image"].tolist()
    for index, block in enumerate(ponder.blocks):
        name = scope(model, index)
        assert block.flops.tolist() == golden[f"{name}/flops_per_image"].tolist()
        if model.config.halting == "none":
            assert block.cost is None
            continue
        squeeze = golden[f"{name}/num_units"].shape
        assert np.array_equal(block.units.reshape(squeeze).numpy(), golden[f"{name}/num_units"])
        close(block.cost.reshape(squeeze), golden[f"{name}/ponder_cost"])
        theirs = golden[f"{name}/halting_distribution"]
        ours = block.halting_distribution
        close(ours if theirs.shape == tuple(ours.shape) else ours.movedim(1, -1), theirs)


@pytest.mark.parametrize("case", CASES)
def test_states(case: str) -> None:
    model, golden, images = load(case)
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str):
        return lambda module, inputs, output: seen.update({name: output[0] if isinstance(output, tuple) else output})

    model.stem.register_forward_hook(keep("stem"))
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(keep(f"{scope(model, index)}/output"))
        for number, unit in enumerate(block.units, start=1):
            unit.register_forward_hook(keep(f"{scope(model, index)}/unit_{number}/output"))
    with torch.no_grad():
        model(images)
    compared = 0
    for name, state in seen.items():
        if name in golden:
            close_states(state, golden[name])
            compared += 1
    assert compared >= 1 + len(model.blocks)


@pytest.mark.parametrize("case", ["cifar_sact_2", "cifar_act_3"])
def test_gradients(case: str) -> None:
    model, _, images = load(case)
    with np.load(GOLDEN / case / "grads.npz") as file:
        grads = dict(file)
    logits, ponder = model(images, return_ponder=True)
    weight = torch.from_numpy(grads["__logits_weight__"])
    loss = (logits * weight).sum() + 0.7 * sum(block.cost.mean() for block in ponder.blocks)
    loss.backward()
    for name, parameter in model.named_parameters():
        theirs = grads[tf_name(name, model.config.family)]
        theirs = theirs.transpose(3, 2, 0, 1) if theirs.ndim == 4 else theirs
        close(parameter.grad, theirs, atol=1e-3 * max(float(np.abs(theirs).max()), 1e-6))


def test_halting() -> None:
    with np.load(GOLDEN / "halting.npz") as file:
        golden = dict(file)
    scores = torch.from_numpy(golden["halting_proba"]).requires_grad_()
    state, weights = halting.start(scores[:, 0]), []
    for score in [*scores.unbind(1), None]:
        state, weight = halting.step(state, score)
        weights.append(weight)
    cost, distribution = halting.ponder_cost(state), torch.stack(weights, 1)
    close(cost, golden["ponder_cost"])
    close(distribution, golden["halting_distribution"])
    assert np.array_equal(state.units.numpy(), golden["num_units"])
    (grad,) = torch.autograd.grad(cost.sum(), scores, retain_graph=True)
    close(grad, golden["grad_ponder"])
    (grad,) = torch.autograd.grad((distribution * torch.from_numpy(golden["fixed_random"])).sum(), scores)
    close(grad, golden["grad_dist"])


def test_imagenet_101_names_and_shapes() -> None:
    import json

    from sact.tf_checkpoints import infer_config

    theirs = {
        name: tuple(shape)
        for name, shape in json.loads((GOLDEN / "imagenet_vanilla_101/variables.json").read_text()).items()
    }
    config = infer_config(theirs, "variables.json")
    assert config == sact.create_model("resnet101", num_classes=1001).config
