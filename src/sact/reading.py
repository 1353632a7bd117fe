"""Reading a residual unit from any module: its graph is traced and described as stages.

A unit of somebody's network is a shortcut plus a branch, then perhaps an activation. The branch is a chain of
convolutions (linear layers of channels are 1x1 convolutions) and layers between them. Layers that this library does not
know are tried out on random numbers, and in the end the unit as it was read, see `trials.py`.
"""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import SameConv2d
from .trials import TO_LAST, Undescribable, check_unit, does_nothing, evaluating, is_global
from .units import ChannelsLast, Description, FrozenNorm, LinearConv, Scale, describe

TO_FIRST = (0, 3, 1, 2)
_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
_VIEWS = ("reshape", "view", "contiguous", "unsqueeze", operator.getitem)
_POOLS = (nn.AvgPool2d, nn.MaxPool2d)
_ACTIVATIONS: dict[Any, type[nn.Module]] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, "relu", "relu_"), nn.ReLU),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, torch.sigmoid_, "sigmoid", "sigmoid_"), nn.Sigmoid),
    **dict.fromkeys((F.tanh, torch.tanh, torch.tanh_, "tanh", "tanh_"), nn.Tanh),
    F.relu6: nn.ReLU6,
    F.silu: nn.SiLU,
    F.hardswish: nn.Hardswish,
    F.hardsigmoid: nn.Hardsigmoid,
}
"""Functions of one tensor (and perhaps `inplace`) as the layers that engines know."""


@dataclass(frozen=True)
class Reading:
    """What a unit is made of.

    Attributes:
        description: its branch and what follows the sum.
        shortcut: layers of the shortcut, in order; empty for the identity. None: there is no shortcut.
        random: modules that in training mode make the unit something else than what is described (dropout).
        overwrites: whether the unit writes into its input.
    """

    description: Description
    shortcut: tuple[nn.Module, ...] | None
    random: tuple[nn.Module, ...] = ()
    overwrites: bool = False

    @property
    def keeps_state(self) -> bool:
        """Whether the shortcut is the raw input."""
        return self.shortcut == ()


class _Function(nn.Module):
    """A call of a function or of a method, on one tensor, as a layer that can be copied and pickled.

    Args:
        node: the call.
    """

    def __init__(self, node: torch.fx.Node) -> None:
        super().__init__()
        self.target: Any = node.target
        place: Any = _Function  # of the tensor
        self.arguments: Any = torch.fx.node.map_arg((node.args, node.kwargs), lambda _: place)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to the same, or whatever the function takes and gives."""
        x = x.clone()  # the function may work in place, on what other units still read
        args, kwargs = torch.fx.node.map_aggregate(self.arguments, lambda each: x if each is _Function else each)
        target = getattr(args[0], self.target) if isinstance(self.target, str) else self.target
        result: Tensor = target(*(args[1:] if isinstance(self.target, str) else args), **kwargs)
        return result

    def extra_repr(self) -> str:
        """The function's name."""
        return str(getattr(self.target, "__name__", self.target))


class _Tracer(torch.fx.Tracer):
    """Traces into modules that are chains of layers; what is not (squeeze-excite) stays one layer."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        if isinstance(module, nn.Sequential):
            return False
        if not list(module.children()) or isinstance(module, (nn.BatchNorm2d, nn.LayerNorm, nn.Conv2d)):
            return True
        try:
            read_layers(module)
        except Undescribable:
            return True
        return False


def read_unit(module: nn.Module, x: Tensor) -> Reading:
    """Describe a residual unit, or a chain of layers without a shortcut.

    Args:
        module: takes and gives one tensor.
        x: a state [N, C, H, W] to try it on.

    Raises:
        Undescribable: it is nothing of the kind.
    """
    if x.dim() != 4:
        raise Undescribable(f"it takes a tensor of {x.dim()} dimensions")
    with evaluating(module):
        reading, layers = _read(module, x.shape[1])
        overwrites = check_unit(module, x, layers, reading.shortcut, reading.description.post)
    return replace(reading, overwrites=overwrites)


def _read(module: nn.Module, channels: int) -> tuple[Reading, list[nn.Module]]:
    """The reading of a unit, and the layers of its branch."""
    graph, start, end = _trace(module)
    nodes, source = _chain(graph, end, start, stop_at_sum=True)
    idle: list[nn.Module] = []
    if source is start:
        layers = _layers(module, nodes, channels, idle)
        return Reading(_describe(layers), None, tuple(idle)), layers
    terms = [argument for argument in source.args if isinstance(argument, torch.fx.Node)]
    if len(terms) != 2 or source.kwargs:
        raise Undescribable("a sum of something other than two branches")
    chains = [_layers(module, _chain(graph, term, start)[0], channels, idle) for term in terms]
    convolutions = [sum(isinstance(layer, nn.Conv2d) for layer in each) for each in chains]
    which = 0 if convolutions[0] > convolutions[1] else 1
    if not convolutions[which]:
        raise Undescribable("a sum without a convolution")
    branch = _describe(chains[which])
    width = next(layer.out_channels for layer in reversed(chains[which]) if isinstance(layer, nn.Conv2d))
    post = _layers(module, nodes, width, idle)
    if any(isinstance(layer, (nn.Conv2d, *_POOLS)) or is_global(layer, width) for layer in post):
        raise Undescribable("something other than an activation behind the sum")
    description = Description(branch.everywhere, branch.stages, branch.tail, tuple(post))
    return Reading(description, tuple(chains[1 - which]), tuple(idle)), chains[which]


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


def read_layers(module: nn.Module) -> list[nn.Module]:
    """A module's layers, if it is a chain of such.

    Raises:
        Undescribable: it is not.
    """
    graph, start, end = _trace(module)
    nodes, _ = _chain(graph, end, start)
    return [_layer(module, node)[0] for node in nodes]


def _describe(layers: list[nn.Module]) -> Description:
    """Layers as stages, behind those that need all positions."""
    channels = next((layer.in_channels for layer in layers if isinstance(layer, nn.Conv2d)), 0)
    last = 0
    for index, layer in enumerate(layers):
        if isinstance(layer, _POOLS):
            raise Undescribable(f"{type(layer).__name__} in the branch")
        if isinstance(layer, nn.Conv2d):
            channels = layer.out_channels
        if not _is_read_whole(layer) if isinstance(layer, nn.Conv2d) else is_global(layer, channels):
            last = index + 1
    if any(layer.stride != (1, 1) for layer in layers[:last] if isinstance(layer, nn.Conv2d)):
        raise Undescribable("something before a stride that needs the whole map")
    rest = describe(layers[last:])
    return Description(tuple(layers[:last]), rest.stages, rest.tail)


def _layers(module: nn.Module, nodes: list[torch.fx.Node], channels: int, idle: list[nn.Module]) -> list[nn.Module]:
    """The layers that nodes stand for, all taking [N, C, H, W].

    Those that do nothing in evaluation mode are left out; what does something in training mode is added to `idle`.
    """
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
        elif type(layer).__name__ == "FrozenBatchNorm2d" and not last:
            layers.append(FrozenNorm(layer))
        elif isinstance(layer, (Scale, *_POOLS)):
            layers.append(layer)
        elif does_nothing(layer, channels, last):
            if isinstance(layer, _Function):
                idle += [module] if "dropout" in layer.extra_repr() else []  # whose mode the function is told
            elif not isinstance(layer, nn.Identity):
                idle.append(layer)
        else:
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
    if node.target in _ACTIVATIONS and len(node.args) == 1 and set(node.kwargs) <= {"inplace"}:
        return _ACTIVATIONS[node.target](), None
    return _Function(node), None


def _scale(module: nn.Module, node: torch.fx.Node) -> Scale:
    while node.op != "get_attr":
        node = node.all_input_nodes[0]
    path, _, name = str(node.target).rpartition(".")
    return Scale(module.get_submodule(path), name)


def _out_of_place(layer: nn.Module) -> nn.Module:
    if getattr(layer, "inplace", False):
        layer = copy.copy(layer)
        layer.inplace = False  # type: ignore[assignment]
    return layer


def _is_read_whole(conv: nn.Conv2d) -> bool:
    """Whether a convolution is what its weights say: neither standardised, for instance, nor pruned by a hook."""
    if conv._forward_hooks or conv._forward_pre_hooks:
        return False
    return type(conv).forward is nn.Conv2d.forward or is_same_padded(conv)


def is_same_padded(conv: nn.Conv2d) -> bool:
    """Whether a convolution pads as TensorFlow does: ours, or timm's."""
    return isinstance(conv, SameConv2d) or type(conv).__name__ == "Conv2dSame"
