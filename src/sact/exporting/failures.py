"""What could not be exported, named with its module."""

from __future__ import annotations

import contextlib
import logging
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from ..errors import InputError, SactError
from ..models.adapted import AdaptedNetwork, AdaptedUnit
from ..models.adaptive import AdaptiveNetwork

_OPERATOR = re.compile(r"\b((?:aten|prims|torchvision|[a-z_]\w*)(?:\.|::)\w+)\.(?:default|[A-Z]\w+)\b")
_NODE = re.compile(r"node %(\w+) : .*?call_function\[target=([\w.]+)\]")
_REMEDY = "replace that module by one of ordinary layers, or leave its unit out of the blocks"


@contextlib.contextmanager
def naming(form: nn.Module, network: AdaptiveNetwork, what: str) -> Iterator[None]:
    """Turn what an exporter raises meanwhile into an InputError that names the operator and its module.

    Args:
        form: what is being exported.
        network: whose modules are named.
        what: is being written, for the message.
    """
    running: list[nn.Module] = []

    def enter(module: nn.Module, args: tuple[object, ...]) -> None:
        running.append(module)

    def leave(module: nn.Module, args: tuple[object, ...], output: object) -> None:
        running.pop()

    handles = []
    for module in form.modules():
        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # whole programs are logged where something fails
    try:
        yield
    except SactError:
        raise
    except Exception as error:  # whatever the exporters raise
        names = module_names(network)
        inner = next((names[module] for module in reversed(running) if module in names), None)
        where = f'the module "{inner}" ({type(running[-1]).__name__})' if running and inner else "the network"
        operator = _operator(error)
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise InputError(f"{where} cannot be exported to {what}: its {operator} fails ({reason}); {_REMEDY}") from error
    finally:
        logging.disable(disabled)
        for handle in handles:
            handle.remove()


def node_failure(
    program: torch.export.ExportedProgram, form: nn.Module, network: AdaptiveNetwork, error: Exception
) -> InputError:
    """What to raise where an operator of a program has no form in ONNX."""
    text, cause = "", error.__cause__
    while cause is not None:
        text, cause = f"{text}\n{cause}", cause.__cause__
    found = _NODE.search(text)
    if found is None:
        reason = (text or str(error)).strip().splitlines()[0][:300]
        return InputError(f'the network cannot be exported to ONNX ({reason}); {_REMEDY}, or use to="torch"')
    name, operator = found.groups()
    nodes = [
        node for node in program.graph.nodes if node.op == "call_function" and f"torch.ops.{node.target}" == operator
    ]
    nodes.sort(key=lambda node: node.name != name)  # the exporter may have given others
    where = _owner(nodes[0], form, network) if nodes else None
    return InputError(
        f"{where or 'the network'} cannot be exported to ONNX: its operator {operator.removeprefix('torch.ops.')} has "
        f'no form there; {_REMEDY}, or use to="torch"'
    )


def _owner(node: torch.fx.Node, form: nn.Module, network: AdaptiveNetwork) -> str | None:
    """The innermost module of the network that a node is of, in words."""
    names = module_names(network)
    for path, _ in reversed((node.meta.get("nn_module_stack") or {}).values()):
        module = _at(form, path)
        if module in names:
            return f'the module "{names[module]}" ({type(module).__name__})'
    return None


def module_names(network: AdaptiveNetwork) -> dict[nn.Module | None, str]:
    """Qualified names of a network's modules; of an adapted one, those that the original had."""
    names: dict[nn.Module | None, str] = {module: name for name, module in network.named_modules() if name}
    if isinstance(network, AdaptedNetwork):
        names = {module: name for module, name in names.items() if ".scores." in name}
        names |= {module: name for name, module in network.network.named_modules() if name}
        for block in network.blocks:
            for unit in block.units:
                assert isinstance(unit, AdaptedUnit)
                for name, module in unit.module.named_modules():
                    names[module] = f"{unit.name}.{name}" if name else unit.name
    return names


def _operator(error: Exception) -> str:
    """The operator that failed, in words; where the message does not name it, the line of code that called it."""
    if found := _OPERATOR.search(str(error)):
        return f"operator {found.group(0)}"
    cause: BaseException | None = error
    line = None
    while cause is not None:
        frames = [frame for frame in traceback.extract_tb(cause.__traceback__) if _is_somebodys(frame.filename)]
        line = frames[-1].line if frames else line
        cause = cause.__cause__ or cause.__context__
    return f"operator in the line `{line}`" if line else "operator"


def _is_somebodys(file: str) -> bool:
    """Whether a file is neither PyTorch's nor of this package."""
    ours = (Path(torch.__file__).parent, Path(__file__).parent)
    return Path(file).is_file() and not any(Path(file).is_relative_to(folder) for folder in ours)


def _at(form: nn.Module, path: str) -> nn.Module | None:
    with contextlib.suppress(AttributeError):
        return form.get_submodule(path.removeprefix("L['self'].").removeprefix("L['self']"))
    return None
