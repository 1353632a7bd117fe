"""`sact.compile`: a network in an engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn

from .budget import Calibration
from .engines import Engine, NormStatistics, Run, choose, prepare
from .errors import InputError
from .models.adaptive import AdaptiveNetwork, Config
from .models.dense import DenseModel, extractor, with_network
from .ponder import Ponder

Dense = TypeVar("Dense", bound=DenseModel)


class CompiledNetwork(nn.Module):
    """A network that runs in an engine: same call, same numbers, less time.

    The weights are shared with the network. Unless it is frozen, changes to them are seen: by optimizers,
    `load_state_dict` and in-place operations, but not by writes through `tensor.data`, which PyTorch does not count;
    compile again after those.

    Attributes:
        model: the network itself.
        engine: the engine's name; one that was chosen here is chosen anew when this module is moved to another device.
        freeze: whether changes to the weights are no longer looked for.
        norm_statistics: over which positions norms in training mode take their statistics.
    """

    model: AdaptiveNetwork
    freeze: bool = False
    norm_statistics: NormStatistics = "all"

    chosen_here: bool = False

    def __init__(
        self, model: AdaptiveNetwork, engine: Engine, freeze: bool = False, norm_statistics: NormStatistics = "all"
    ) -> None:
        super().__init__()
        self.model = model
        self.chosen_here = engine == "auto"
        self.engine = choose(engine, _device(model))
        self.freeze = freeze
        self.norm_statistics = norm_statistics
        self.training = model.training
        self._run: Run = prepare(model, self.engine, freeze, norm_statistics)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CompiledNetwork:
        """What `to`, `cuda` and the like come down to."""
        super()._apply(fn, recurse)
        engine = choose("auto", _device(self.model)) if self.chosen_here else self.engine
        if engine != self.engine or self.freeze:  # what was made of frozen weights lies where they were
            self.engine = engine
            self._run = prepare(self.model, engine, self.freeze, self.norm_statistics)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold the network and the engine's name; what the engine prepared is prepared anew."""
        return {name: value for name, value in self.__dict__.items() if name != "_run"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._run = prepare(self.model, self.engine, self.freeze, self.norm_statistics)

    @property
    def config(self) -> Config:
        """The network's configuration."""
        return self.model.config

    @property
    def calibration(self) -> Calibration | None:
        """The network's calibration."""
        return self.model.calibration

    @property
    def budget(self) -> float | None:
        """The network's own budget, read and written."""
        return self.model.budget

    @budget.setter
    def budget(self, budget: float | None) -> None:
        self.model.budget = budget

    @property
    def cap(self) -> float | None:
        """The network's own cap, read and written. Under one the gather engine runs in place of a compiled one."""
        return self.model.cap

    @cap.setter
    def cap(self, cap: float | None) -> None:
        self.model.cap = cap

    @property
    def preprocessing(self) -> dict[str, Any] | None:
        """The network's evaluation preprocessing."""
        return self.model.preprocessing

    def forward(
        self, images: Tensor, return_ponder: bool = False, return_halting_distribution: bool = False
    ) -> Tensor | list[Tensor] | tuple[Tensor | list[Tensor], Ponder]:
        """As `Network.forward`."""
        output, ponder = self._run(images, keep_distribution=return_halting_distribution)
        return (output, ponder) if return_ponder or return_halting_distribution else output


@overload
def compile(
    model: Dense, engine: Engine = ..., *, freeze: bool = ..., norm_statistics: NormStatistics = ...
) -> Dense: ...
@overload
def compile(
    model: AdaptiveNetwork | CompiledNetwork,
    engine: Engine = ...,
    *,
    freeze: bool = ...,
    norm_statistics: NormStatistics = ...,
) -> CompiledNetwork: ...
def compile(
    model: AdaptiveNetwork | CompiledNetwork | DenseModel,
    engine: Engine = "auto",
    *,
    freeze: bool = False,
    norm_statistics: NormStatistics = "all",
) -> CompiledNetwork | DenseModel:
    """Make a network skip what has halted.

    Args:
        model: a network of this library, or a detector or segmenter, whose extractor it then is about.
        engine: "masked" (the definition: saves nothing), "gather" (PyTorch, any device), "native" (compiled, for
            inference on the CPU in float32; everything else runs in "gather"), "triton" (the same for CUDA devices,
            also in half precision), or "auto" (the fastest that works here, for the device that the network is on).
        freeze: a promise that the network, its weights and its mode stay as they are, so that engines need not look for
            changes at every call. Looking takes about 0.1 ms for 500 tensors: worth saving for small networks. With
            "triton" the network is also captured in a CUDA graph per image size, after a few calls. (In a graph of your
            own the weights must stay as they are in any case.)
        norm_statistics: over which positions norms in training mode take their statistics. "all": all, as the authors
            do, hence a block with such norms runs by the definition; it skips with norms in evaluation mode alone.
            "active": those that a SACT block reads, the active ones and those around them; it skips then, and is
            another method, with other weights at the end.

    Returns:
        A module with the model's call, and the same results within float tolerance. A detector or segmenter gives one
        that shares all weights, and runs its heads as before; gather skips in its training, too.

    Raises:
        InputError: an unknown engine, statistics that it lacks, or something other than a network of this library.
    """
    if isinstance(model, DenseModel):
        inside = CompiledNetwork(extractor(model), engine, freeze, norm_statistics)
        return with_network(model, inside)
    if isinstance(model, CompiledNetwork):
        model = model.model
    if not isinstance(model, AdaptiveNetwork):
        raise InputError(
            f"sact.compile takes a network made by sact, got {type(model).__name__}; see sact.create_model"
        )
    return CompiledNetwork(model, engine, freeze, norm_statistics)


def _device(model: AdaptiveNetwork) -> torch.device:
    return next(model.parameters()).device
