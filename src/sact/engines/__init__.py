"""Engines: ways to evaluate a network only where it is active. All give the same numbers."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from ..errors import InputError
from ..models.network import Network
from ..ponder import Ponder

Engine = Literal["auto", "masked", "gather"]
ENGINES = ("masked", "gather")


class Run(Protocol):
    """What an engine makes of a network: images in; logits (or features) and what they cost out.

    An engine is a module of this package with one function, `prepare(model: Network) -> Run`. It may replace the
    evaluation of single blocks (pass a `RunBlock` to `Network.run`) or of the whole network.
    """

    def __call__(self, images: Tensor, *, keep_distribution: bool = False) -> tuple[Tensor | list[Tensor], Ponder]: ...


class CompiledNetwork(nn.Module):
    """A network that runs in an engine: same call, same numbers, less time.

    Attributes:
        model: the network itself; its weights are shared, and later changes to them are seen.
        engine: the engine's name.
    """

    model: Network

    def __init__(self, model: Network, engine: str) -> None:
        super().__init__()
        self.model = model
        self.engine = engine
        self._run: Run = _prepare(model, engine)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold the network and the engine's name; what the engine prepared is prepared anew."""
        return {name: value for name, value in self.__dict__.items() if name != "_run"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._run = _prepare(self.model, self.engine)

    def forward(
        self, images: Tensor, return_ponder: bool = False, return_halting_distribution: bool = False
    ) -> Tensor | list[Tensor] | tuple[Tensor | list[Tensor], Ponder]:
        """As `Network.forward`."""
        output, ponder = self._run(images, keep_distribution=return_halting_distribution)
        return (output, ponder) if return_ponder or return_halting_distribution else output


def compile(model: Network, engine: Engine = "auto") -> CompiledNetwork:
    """Make a network skip what has halted.

    Args:
        model: a network of this library. Call `.eval()` before running a fast engine: norms need their running
            statistics.
        engine: "masked" (the definition: saves nothing), "gather" (PyTorch, any device), or "auto" (the fastest that
            works here).

    Returns:
        A module with the model's call, and the same results within float tolerance.

    Raises:
        InputError: an unknown engine, or something other than a network of this library.
    """
    if isinstance(model, CompiledNetwork):
        model = model.model
    if not isinstance(model, Network):
        raise InputError(
            f"sact.compile takes a network made by sact, got {type(model).__name__}; see sact.create_model"
        )
    name = "gather" if engine == "auto" else engine
    if name not in ENGINES:
        raise InputError(f'engine is "{engine}", but it must be one of "auto", {", ".join(repr(e) for e in ENGINES)}')
    return CompiledNetwork(model, name)


def _prepare(model: Network, engine: str) -> Run:
    run: Run = import_module(f".{engine}", __name__).prepare(model)
    return run
