"""Reading a residual unit from any module: its graph is traced and described as stages.

A unit of somebody's network is a shortcut plus a branch, then perhaps an activation. The branch is a chain of
convolutions (linear layers of channels are 1x1 convolutions) and layers between them. A layer that this library does
not know is tried out on random numbers: it either acts on every position by itself, or it needs the whole map.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from .layers import SameConv2d
from .units import ChannelsLast, Description, LinearConv, Scale, describe

TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
_VIEWS = ("reshape", "view", "contiguous", "unsqueeze", operator.getitem)


_POOLS = (nn.AvgPool2d, nn.MaxPool2d)


class Undescribable(Exception):
    """A module that is no residual unit, or one with something that cannot be described; the message says what."""


@dataclass(frozen=True)
class Reading:
    """What a unit is made of.

    Attributes:
        description: its branch and what follows the sum.
        shortcut: layers of the shortcut, in order; empty for the identity. None: there is no shortcut.
    """

    description: Description
    shortcut: tuple[nn.Module, ...] | None

    @property
    def keeps_state(self) -> bool:
        """Whether the shortcut is the raw input."""
        return self.shortcut == ()


class _Function(nn.Module):
    """A call of a function on one tensor, as a layer."""

    def __init__(self, call: Callable[[Tensor], Tensor], name: str) -> None:
        super().__init__()
        self.call = call
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)

    def extra_repr(self) -> str:
        return self.name


class _Tracer(torch.fx.Tracer):
    """Traces into modules that are chains of layers; what is not (squeeze-excite) stays one layer."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        if isinstance(module, nn.Sequential):
            return False
        if not list(module.children()) or isinstance(module, (nn.BatchNorm2d, nn.LayerNorm, nn.Conv2d)):
            return True
        try:
            _walk(module)
        except Undescribable:
            return True
        return False


def read_unit(module: nn.Module, channels: int) -> Reading:
    """Describe a residual unit, or a chain of layers without a shortcut.

    Args:
        module: takes and gives one tensor [N, C, H, W].
        channels: of its input.

    Raises:
        Undescribable: it is nothing of the kind.
    """
    graph, start, end = _trace(module)
    nodes, source = _chain(graph, end, start, stop_at_sum=True)
    if source is start:
        return Reading(_describe(module, nodes, channels), None)
    terms = [argument for argument in source.args if isinstance(argument, torch.fx.Node)]
    if len(terms) != 2 or source.kwargs:
        raise Undescribable("a sum of something other than two branches")
    chains = [_chain(graph, term, start)[0] for term in terms]
    layers = [_layers(module, chain, channels) for chain in chains]
    convolutions = [sum(isinstance(layer, nn.Conv2d) for layer in each) for each in layers]
    which = 0 if convolutions[0] > convolutions[1] else 1
    if not convolutions[which]:
        raise Undescribable("a sum without a convolution")
    branch = _describe_layers(layers[which])
    width = next(layer.out_channels for layer in reversed(layers[which]) if isinstance(layer, nn.Conv2d))
    post = _layers(module, nodes, width)
    if any(isinstance(layer, nn.Conv2d) or _is_global(layer, width) for layer in post):
        raise Undescribable("something other than an activation behind the sum")
    description = Description(branch.everywhere, branch.stages, branch.tail, tuple(post))
    return Reading(description, tuple(layers[1 - which]))


def _trace(module: nn.Module) -> tuple[torch.fx.Graph, torch.fx.Node, torch.fx.Node]:
    try:
        graph = _Tracer().trace(module)
    except Exception as error:  # whatever its forward pass raises on a stand-in for a tensor
        raise Undescribable(f"its forward pass cannot be traced ({type(error).__name__}: {error})") from error
    starts = [node for node in graph.nodes if node.op == "placeholder"]
    used = [node for node in starts if node.users]
    end = next(node for node in graph.nodes if node.op == "output").args[0]
    if len(used) != 1 or not isinstance(end, torch.fx.Node):
        raise Undescribable("it takes or gives something other than one tensor")
    return graph, used[0], end


def _chain(
    graph: torch.fx.Graph, end: torch.fx.Node, start: torch.fx.Node, stop_at_sum: bool = False
) -> tuple[list[torch.fx.Node], torch.fx.Node]:
    """The nodes from `start` (or, if asked for, from the last sum of two tensors) to `end`, and that first node."""
    nodes: list[torch.fx.Node] = []
    node = end
    while node is not start:
        inputs = [each for each in node.all_input_nodes if not _is_constant(each)]
        if stop_at_sum and node.target in _ADDITIONS and len(node.all_input_nodes) == 2 and len(inputs) == 2:
            break
        if len(inputs) != 1:
            raise Undescribable(f"{node.format_node()} joins {len(inputs)} branches")
        nodes.insert(0, node)
        node = inputs[0]
    return nodes, node


def _is_constant(node: torch.fx.Node) -> bool:
    """Whether a node stands for a parameter, viewed in whatever shape."""
    while node.target in _VIEWS and node.op in ("call_method", "call_function"):
        node = node.all_input_nodes[0]
    return node.op == "get_attr"


def _walk(module: nn.Module) -> list[nn.Module]:
    """A module's layers, if it is a chain of such."""
    graph, start, end = _trace(module)
    nodes, _ = _chain(graph, end, start)
    return [_layer(module, node)[0] for node in nodes]


def _describe(module: nn.Module, nodes: list[torch.fx.Node], channels: int) -> Description:
    return _describe_layers(_layers(module, nodes, channels))


def _describe_layers(layers: list[nn.Module]) -> Description:
    """Layers as stages, behind those that need all positions."""
    channels = next((layer.in_channels for layer in layers if isinstance(layer, nn.Conv2d)), 0)
    last = 0
    for index, layer in enumerate(layers):
        if isinstance(layer, _POOLS):
            raise Undescribable(f"{type(layer).__name__} in the branch")
        if isinstance(layer, nn.Conv2d):
            channels = layer.out_channels
        if not _is_read_whole(layer) if isinstance(layer, nn.Conv2d) else _is_global(layer, channels):
            last = index + 1
    if any(layer.stride != (1, 1) for layer in layers[:last] if isinstance(layer, nn.Conv2d)):
        raise Undescribable("something before a stride that needs the whole map")
    rest = describe(layers[last:])
    return Description(tuple(layers[:last]), rest.stages, rest.tail)


def _layers(module: nn.Module, nodes: list[torch.fx.Node], channels: int) -> list[nn.Module]:
    """The layers that nodes stand for, all taking [N, C, H, W]; those that change nothing are left out."""
    layers: list[nn.Module] = []
    last = False  # whether channels stand last
    for node in nodes:
        layer, dims = _layer(module, node)
        if dims is not None:
            if dims != (TO_FIRST if last else TO_LAST):
                raise Undescribable(f"a permutation {dims} of [N, C, H, W]")
            last = not last
        elif isinstance(layer, nn.Conv2d) and not last:
            layers.append(layer)
            channels = layer.out_channels
        elif isinstance(layer, nn.Linear) and last:
            layers.append(LinearConv(layer))
            channels = layer.out_features
        elif isinstance(layer, (nn.Conv2d, nn.Linear)):
            raise Undescribable(f"{type(layer).__name__} with channels {'last' if last else 'first'}")
        elif isinstance(layer, nn.BatchNorm2d) and not last:
            layers.append(layer)
            after = getattr(layer, "act", None)  # timm keeps a norm and its activation in one module
            if isinstance(after, nn.Module) and not isinstance(after, nn.Identity):
                layers.append(_out_of_place(after))
        elif isinstance(layer, (Scale, *_POOLS)):
            layers.append(layer)
        elif not _does_nothing(layer, channels, last):
            of_channels = last and not isinstance(layer, nn.LayerNorm)
            layers.append(ChannelsLast(layer) if of_channels else _out_of_place(layer))
    if last:
        raise Undescribable("a branch that ends with its channels last")
    return layers


def _layer(module: nn.Module, node: torch.fx.Node) -> tuple[nn.Module, tuple[int, ...] | None]:
    """What a node does, as a layer; or as the permutation that it is."""
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        dims = getattr(layer, "dims", None)
        return layer, tuple(dims) if type(layer).__name__ == "Permute" and dims is not None else None
    if node.target in ("permute", torch.permute):
        dims = node.args[1:] if len(node.args) > 2 else node.args[1]
        return nn.Identity(), tuple(dims)  # type: ignore[arg-type]
    constants = [each for each in node.all_input_nodes if _is_constant(each)]
    if constants:
        if node.target not in _PRODUCTS or len(constants) != 1:
            raise Undescribable(f"{node.format_node()} reads a parameter")
        return _scale(module, constants[0]), None
    if node.op not in ("call_function", "call_method"):
        raise Undescribable(f"{node.format_node()}")
    return _Function(_call(node), getattr(node.target, "__name__", str(node.target))), None


def _scale(module: nn.Module, node: torch.fx.Node) -> Scale:
    while node.op != "get_attr":
        node = node.all_input_nodes[0]
    path, _, name = str(node.target).rpartition(".")
    return Scale(module.get_submodule(path), name)


def _call(node: torch.fx.Node) -> Callable[[Tensor], Tensor]:
    """The call that a node stands for, of its one tensor."""
    main = node.all_input_nodes[0]
    target: Any = node.target
    if isinstance(target, str) and target.endswith("_"):
        target = target[:-1]  # on what other units still read nothing may be done in place

    def call(x: Tensor) -> Tensor:
        args = torch.fx.node.map_arg(node.args, lambda each: x if each is main else each)
        kwargs = torch.fx.node.map_arg(node.kwargs, lambda each: x if each is main else each) | {}
        if kwargs.get("inplace"):
            kwargs = {**kwargs, "inplace": False}
        result: Tensor = getattr(x, target)(*args[1:], **kwargs) if isinstance(target, str) else target(*args, **kwargs)
        return result

    return call


def _out_of_place(layer: nn.Module) -> nn.Module:
    if getattr(layer, "inplace", False):
        layer = copy.copy(layer)
        layer.inplace = False  # type: ignore[assignment]
    return layer


def _is_read_whole(conv: nn.Conv2d) -> bool:
    """Whether a convolution is what its weights say: it does not standardise them, for instance."""
    return type(conv).forward is nn.Conv2d.forward or is_same_padded(conv)


def is_same_padded(conv: nn.Conv2d) -> bool:
    """Whether a convolution pads as TensorFlow does: ours, or timm's."""
    return isinstance(conv, SameConv2d) or type(conv).__name__ == "Conv2dSame"


def _does_nothing(layer: nn.Module, channels: int, last: bool) -> bool:
    """Whether a layer is the identity in evaluation mode (dropout, stochastic depth)."""
    if isinstance(layer, nn.Identity):
        return True
    if isinstance(layer, nn.LayerNorm) or any(True for _ in layer.parameters()):
        return False
    x = _sample(layer, channels)
    given = x.permute(TO_LAST) if last else x
    return bool(torch.equal(_try(layer, given), given))


def _is_global(layer: nn.Module, channels: int) -> bool:
    """Whether a layer's result at one position depends on others."""
    if isinstance(layer, (nn.BatchNorm2d, nn.LayerNorm, Scale, nn.Conv2d, nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU)):
        return False
    x = _sample(layer, channels)
    other = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x)
    other[:, :, 1, 2] = x[:, :, 1, 2]
    return not torch.allclose(_try(layer, x)[:, :, 1, 2], _try(layer, other)[:, :, 1, 2], rtol=1e-4, atol=1e-5)


def _sample(layer: nn.Module, channels: int) -> Tensor:
    like = next(layer.parameters(), torch.zeros(()))
    return torch.randn(2, channels, 5, 5, generator=torch.Generator().manual_seed(0)).to(like)


@torch.no_grad()
def _try(layer: nn.Module, x: Tensor) -> Tensor:
    twin = copy.deepcopy(layer).eval()
    for number, parameter in enumerate(twin.parameters()):  # zeros would hide what the layer does
        generator = torch.Generator().manual_seed(number)
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    try:
        result = twin(x.clone())
    except Exception as error:
        raise Undescribable(f"{type(layer).__name__} does not take a map of {x.shape[1]} channels: {error}") from error
    if not isinstance(result, Tensor) or result.shape != x.shape:
        raise Undescribable(f"{type(layer).__name__}, which changes the shape of its input")
    return result
