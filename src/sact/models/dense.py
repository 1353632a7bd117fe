"""What detectors and segmenters have in common: an extractor inside, weights to start from, a folder to be saved in."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, InputError
from .adaptive import AdaptiveNetwork
from .dense_config import DenseConfig

if TYPE_CHECKING:
    from pathlib import Path

    from ..compiled import CompiledNetwork


class DenseModel(nn.Module):
    """A model that answers for every position or object of an image: `Detector` or `Segmenter`.

    Attributes:
        config: what this model is.
        network: its extractor, an `AdaptiveNetwork` that gives features, or what `sact.compile` made of one.
        class_names: names of the classes, or None.
    """

    config: DenseConfig
    network: AdaptiveNetwork | CompiledNetwork

    def __init__(self) -> None:
        super().__init__()
        self.class_names: list[str] | None = None

    def classifier_weights(self) -> dict[str, Tensor]:
        """The tensors that a classification network of these units has too, by their names in there."""
        return dict(extractor(self).state_dict(keep_vars=True))

    def start_from(self, source: nn.Module) -> None:
        """Take over the weights of a trained network; its heads for a task stay behind.

        Score heads are taken over where both halt alike, and otherwise stay as they are; so does a final norm that the
        source lacks.

        Args:
            source: a classification network of the same family, units and width, plain or adaptive, or a detector or
                segmenter with such an extractor.

        Raises:
            InputError: the source is none of these.
            CheckpointError: its weights are of other names or shapes; the first is named and nothing is changed.

        Source: section 4 (adaptive networks start from trained ones).
        """
        network = extractor(source)
        is_dense = isinstance(source, DenseModel)
        theirs = source.classifier_weights() if isinstance(source, DenseModel) else dict(network.state_dict())
        ours = self.classifier_weights()
        if network.config.halting != extractor(self).config.halting:
            theirs, ours = _without_scores(theirs), _without_scores(ours)
        _check_start(theirs, ours)
        _tell_pixels(source if is_dense else network, self.config)
        with torch.no_grad():
            for name in theirs.keys() & ours.keys():
                ours[name].copy_(theirs[name])

    def check_range(self, images: Iterable[Tensor]) -> None:
        """Raise InputError if pixels are clearly not in [0, 1]; overshoot of resizing and the like is let pass."""
        for index, image in enumerate(images):
            if image.device.type != "cpu" or torch.compiler.is_compiling():  # elsewhere the host would wait
                return
            least, most = (float(value) for value in image.detach().aminmax())
            if not (least >= -0.5 and most <= 1.5):
                raise InputError(
                    f"image {index} has values from {least:g} to {most:g}, but pixels must be in [0, 1]; "
                    "divide bytes by 255, and leave normalising to the model"
                )

    def check_classifies(self) -> None:
        """Raise InputError: this model does not classify images."""
        check_network(self)

    def save_pretrained(self, folder: str | Path, **metadata: Any) -> None:
        """Write `config.json` and `model.safetensors` to a folder; see `sact.save_pretrained`."""
        from ..checkpoints import save_pretrained

        save_pretrained(self, folder, **metadata)


Model = TypeVar("Model", bound=DenseModel)


def extractor(model: nn.Module) -> AdaptiveNetwork:
    """The adaptive network inside a network, compiled network, detector or segmenter.

    Raises:
        InputError: it is none of these.
    """
    from ..compiled import CompiledNetwork

    if isinstance(model, DenseModel):
        model = model.network
    if isinstance(model, CompiledNetwork):
        model = model.model
    if not isinstance(model, AdaptiveNetwork):
        raise InputError(f"a network, detector or segmenter of this library is needed, got {type(model).__name__}")
    return model


def check_network(model: nn.Module, name: str = "this model") -> None:
    """Raise InputError, with what to use instead, if a detector or segmenter stands where a network is needed."""
    if isinstance(model, DenseModel):
        kind, verb = ("detector", "detect") if model.config.family == "faster_rcnn" else ("segmenter", "segment")
        raise InputError(
            f"{name} is a {kind}, but a network by itself is needed here; use sact {verb}, sact eval "
            "for its FLOPs, or in Python its model.network"
        )


def with_network(model: Model, network: AdaptiveNetwork | CompiledNetwork) -> Model:
    """The same model, all its weights shared, around another form of its extractor."""
    copied = copy.copy(model)
    copied._modules = dict(model._modules)
    copied.network = network
    return copied


def wide(x: Tensor) -> Tensor:
    """float32, unless it is float64: no coordinate, score or logit is left in half precision."""
    return x if x.dtype == torch.float64 else x.float()


def _without_scores(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if ".scores." not in name}


def _check_start(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> None:
    """Raise CheckpointError unless all that ours needs is there, in its shape, and no unit is left over."""
    fresh = [name for name in ours if name not in theirs and (name.startswith("head.") or ".scores." in name)]
    problems = [f"it has no {name}" for name in ours if name not in theirs and name not in fresh]
    blocks = {name.split(".")[1] for name in ours if name.startswith("blocks.")}
    left = [name for name in theirs if name.startswith("blocks.") and name not in ours]
    problems += [f"its {name} has no place" for name in left if name.split(".")[1] in blocks and ".scores." not in name]
    problems += [
        f"its {name} has shape {list(theirs[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in ours.items()
        if name in theirs and theirs[name].shape != tensor.shape
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise CheckpointError(
            f"these weights are of another network: {problems[0]}{more}; create the model with the units and "
            "base_channels of the network that it starts from"
        )


def _tell_pixels(source: nn.Module, config: DenseConfig) -> None:
    """Warn if pixels are scaled in another way than the source's were."""
    probe = torch.tensor([0.0, 1.0]).expand(3, 1, 2)
    if isinstance(source, DenseModel):
        theirs = scaled(probe, source.config)
    elif isinstance(source, AdaptiveNetwork) and source.preprocessing is not None:
        from ..preprocessing import normalise

        theirs = normalise(probe, source.preprocessing)
    else:
        return
    if not torch.allclose(theirs, scaled(probe, config), atol=1e-3):
        warnings.warn(
            f"these weights expect pixels scaled in another way than by image_mean {config.image_mean} and image_std "
            f"{config.image_std}; create the model with those of the network that it starts from",
            stacklevel=3,
        )


def scaled(pixels: Tensor, config: DenseConfig) -> Tensor:
    """Pixels [3, H, W] in [0, 1] as the extractor gets them."""
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (config.image_mean, config.image_std))
    return (pixels - mean) / std
