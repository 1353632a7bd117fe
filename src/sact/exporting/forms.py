"""A network as one module from images to named tensors, which is what is exported."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..block import Block
from ..errors import InputError
from ..models.adapted import AdaptedNetwork, with_replaced
from ..models.adaptive import AdaptiveNetwork
from ..models.network import Network

MakeBlock = Callable[[Block], nn.Module]
"""What stands in for a block: [N, C, H, W] to its output, its unit counts and its ponder costs."""


class MaskedBlock(nn.Module):
    """A block by its definition: everything is computed, and kept where it is active.

    Args:
        block: the block.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The block's input [N, C, H, W] to its output, its unit counts and its ponder costs (neither where plain)."""
        if self.block.halting == "none":
            for unit in self.block.units:
                x = unit(x)
            return x, None, None
        output, ponder = self.block(x)
        return output, ponder.units, ponder.cost


class Exportable(nn.Module):
    """Images to a dict: "logits" or "features_1", ..., and per block that halts "units_k" and "cost_k".

    Args:
        model: in evaluation mode.
        make_block: what stands in for each block.
        takes_forced: take unit counts per block, [N, H, W], instead of what the scores say; for measuring.
    """

    def __init__(self, model: AdaptiveNetwork, make_block: MakeBlock, takes_forced: bool = False) -> None:
        super().__init__()
        self.makes_features = model.config.features_only
        self.halts = model.config.halting != "none"
        self.takes_forced = takes_forced
        made = [_Noting(make_block(block)) for block in model.blocks]
        self.made = (made,)  # in a tuple, as they are parts of the network already
        if isinstance(model, AdaptedNetwork):
            first: dict[str, nn.Module] = {
                names[0]: block for names, block in zip(model.config.blocks, made, strict=True)
            }
            self.network: nn.Module = with_replaced(model.network, first)
        else:
            assert isinstance(model, Network)
            self.network = _Sequence(model, made)
        self.eval()

    def forward(self, images: Tensor, forced: list[Tensor] | None = None) -> dict[str, Tensor]:
        """[N, C, H, W], and where the module takes them unit counts per block, to the named tensors."""
        blocks = self.made[0]
        for index, block in enumerate(blocks):
            if self.takes_forced and forced is not None:
                block.block.forced = forced[index]
        output = self.network(images)
        results = named(output, self.makes_features)
        for index, block in enumerate(blocks, start=1):
            if self.halts and block.noted is not None:
                results[f"units_{index}"], results[f"cost_{index}"] = block.noted
            block.noted = None
            if self.takes_forced:
                block.block.forced = None  # type: ignore[assignment]
        return results


class _Noting(nn.Module):
    """Passes on a block's output, and keeps what it spent until it is asked for."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.noted: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        output, units, cost = self.block(x)
        self.noted = units, cost
        result: Tensor = output
        return result


class _Sequence(nn.Module):
    """One of this library's own networks."""

    def __init__(self, model: Network, blocks: list[_Noting]) -> None:
        super().__init__()
        self.stem = model.stem
        self.blocks = nn.ModuleList(blocks)
        self.head = model.head
        self.classifier = model.classifier

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        x = self.stem(images)
        features = []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        if self.head is None or self.classifier is None:
            return features
        logits: Tensor = self.classifier(self.head(x))
        return logits.flatten(1)


def named(output: object, makes_features: bool) -> dict[str, Tensor]:
    """A network's output by name: logits, features_1, ..., or the names that it gives itself.

    Raises:
        InputError: it is something else than tensors.
    """
    if isinstance(output, Tensor):
        return {"features_1" if makes_features else "logits": output}
    values = list(output.values()) if isinstance(output, dict) else output
    if not isinstance(values, (list, tuple)) or not all(isinstance(value, Tensor) for value in values):
        raise InputError(
            f"the network gives {type(output).__name__}, but what is exported gives a tensor, or a list or dict of "
            "tensors"
        )
    names = list(output) if isinstance(output, dict) else [f"features_{n}" for n in range(1, len(values) + 1)]
    return {str(name): torch.as_tensor(value) for name, value in zip(names, values, strict=True)}
