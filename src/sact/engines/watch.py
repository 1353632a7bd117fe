"""Noticing that weights have changed, so that what an engine made of them can be kept between calls."""

from __future__ import annotations

from itertools import starmap
from operator import attrgetter, eq, is_

from torch import Tensor, nn

from ..block import Block


class Watch:
    """Notices that a module's weights are no longer what they were, in a fraction of the time of a small run.

    Seen are other modules, parameters and buffers, in-place operations on those, and eps of norms and blocks; not seen
    are writes through `tensor.data`, which PyTorch does not count.
    """

    def __init__(self, module: nn.Module) -> None:
        modules = list(module.modules())
        self._children = [(part._modules, dict(part._modules)) for part in modules if part._modules]
        held = [
            (items, name, tensor)
            for part in modules
            for items in (part._parameters, part._buffers)
            for name, tensor in items.items()
            if name != "num_batches_tracked"
        ]
        self._items, self._names, self._values = zip(*held, strict=True)
        self._tensors = [tensor for _, _, tensor in held if tensor is not None]
        self._pointers = [tensor.data_ptr() for tensor in self._tensors]
        self._counted = [tensor for tensor in self._tensors if not tensor.is_inference()]
        self._versions = [tensor._version for tensor in self._counted]
        self._with_eps = [part for part in modules if isinstance(part, (Block, nn.BatchNorm2d))]
        self._eps = [part.eps for part in self._with_eps]

    def unchanged(self) -> bool:
        """Whether everything is as it was."""
        # Loops in C: a network has hundreds of tensors.
        return (
            all(map(is_, map(dict.get, self._items, self._names), self._values))
            and list(map(attrgetter("_version"), self._counted)) == self._versions
            and list(map(Tensor.data_ptr, self._tensors)) == self._pointers
            and all(starmap(eq, self._children))
            and list(map(attrgetter("eps"), self._with_eps)) == self._eps
        )
