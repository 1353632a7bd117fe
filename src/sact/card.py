"""The model card: a README.md that says what a network is, what it reached, and how to load it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeGuard

from .errors import InputError
from .models.dense import DenseModel, extractor

if TYPE_CHECKING:
    from .models.adaptive import AdaptiveNetwork

    Model = AdaptiveNetwork | DenseModel

CARD_NAME = "README.md"
PICTURE_NAME = "ponder.png"
PAPER = "https://arxiv.org/abs/1612.02297"

LICENCES = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "mpl-2.0", "lgpl-3.0", "gpl-3.0", "agpl-3.0"),
    *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
)
"""Licences that the hub knows by these names; others stand in the text."""

OF_THE_MACHINE = ("data_dir", "cache", "accelerator", "devices", "workers", "log_every")
"""Fields of a recipe that say where it ran, not what was done."""

METHODS = {
    "sact": "Every position of its feature maps stops when it is done, and what has stopped need not be computed",
    "act": "Every image stops when it is done, and the units behind need not be computed",
    "none": "Every unit runs for every image",
}
TAGS = {"sact": "spatially-adaptive-computation-time", "act": "adaptive-computation-time"}

# Figures are rounded to our disadvantage: what is reached down, what it costs and what we compare with up.
PERCENTAGES = {
    "top1": ("top-1", ROUND_FLOOR),
    "top5": ("top-5", ROUND_FLOOR),
    "agreement": ("pictures with the original's class", ROUND_FLOOR),
    "sure_agreement": ("the same where the original is sure", ROUND_FLOOR),
    "plain_top1": ("top-1 of the plain network", ROUND_CEILING),
    "share": ("FLOPs, of the plain network's", ROUND_CEILING),
}

_MARK = re.compile(r"<!-- Written by sact \(([0-9a-f]{16})\)[^>]*-->\n*\Z")


def model_card(model: Model, metadata: Mapping[str, Any], picture: str | None = None) -> str:
    """The text of a card in Hugging Face's format, Markdown behind YAML.

    Args:
        model: what the card describes.
        metadata: facts kept beside the weights. `recipe` and `results` as `sact train` leaves them, `licence` (or
            `license`), `name`, `dataset` (by default the recipe's data) and `description` have their places; everything
            else stands at the end.
        picture: name of an image file beside the card.

    Returns:
        The card. Its last line tells `is_unedited` whether somebody has changed it since.

    Raises:
        InputError: the metadata is not JSON-able.
    """
    metadata = as_json(metadata)
    recipe, results = _mapping(metadata, "recipe"), _mapping(metadata, "results")
    name = _line(metadata.get("name") or _name(model))
    licence = metadata.get("licence") or metadata.get("license")
    parts = [
        f"---\n{_front_matter(model, name, licence, metadata.get('dataset') or recipe.get('data'), results)}\n---",
        f"# {name}",
        f"{_task(model)}. {METHODS[extractor(model).config.halting]} ([Figurnov et al., CVPR 2017]({PAPER})).",
        str(metadata.get("description", "")).strip(),
        f"![Images and where the network worked on them]({picture})" if picture else "",
        f"## Use\n\n```python\n{_example(model)}```",
        _results(results),
        _network(model),
    ]
    if recipe:
        verb = "adapt" if "learn" in recipe else "train"
        parts.append(f"## Recipe\n\nOf `sact {verb}`:\n\n{_yaml(_portable(recipe))}")
    if licence:
        parts.append(f"## Licence\n\n{_line(licence)}")
    places = ("recipe", "results", "licence", "license", "name", "dataset", "description")
    rest = {key: value for key, value in metadata.items() if key not in places}
    if rest:
        parts.append(f"## Further facts\n\n{_yaml(rest)}")
    text = "\n\n".join(part for part in parts if part) + "\n\n"
    return f"{text}<!-- Written by sact ({_digest(text)}); an edited card is left as it is. -->\n"


def as_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata as it comes back from JSON.

    Raises:
        InputError: it is not JSON-able.
    """
    try:
        return dict(json.loads(json.dumps(metadata)))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the metadata cannot be written as JSON ({error}); pass numbers, texts, lists and dicts"
        ) from error


def is_unedited(card: str) -> bool:
    """Whether a card is as `model_card` wrote it."""
    mark = _MARK.search(card)
    return mark is not None and mark[1] == _digest(card[: mark.start()])


def _front_matter(model: Model, name: str, licence: Any, dataset: Any, results: Mapping[str, Any]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    task = _hub_task(model)
    measured = []
    if dataset is not None:
        for key, metric in (("top1", "accuracy"), ("top5", "top_5_accuracy"), ("share", "flops_share")):
            if _is_number(results.get(key)):
                label = PERCENTAGES[key][0]
                measured.append(
                    EvalResult(task, str(dataset), str(dataset), metric, float(results[key]), metric_name=label)
                )
    known = str(licence).strip().lower().split(";")[0].split()
    data = ModelCardData(
        library_name="sact",
        pipeline_tag=task,
        tags=["sact", "adaptive-computation", *filter(None, [TAGS.get(extractor(model).config.halting)])],
        license=next((word for word in known[:1] if word in LICENCES), "other") if licence else None,
        model_name=name if measured else None,
        eval_results=measured or None,
    )
    return str(data.to_yaml()).strip()


def _hub_task(model: Model) -> str:
    if isinstance(model, DenseModel):
        return "object-detection" if model.config.family == "faster_rcnn" else "image-segmentation"
    return "image-feature-extraction" if model.config.features_only else "image-classification"


def _name(model: Model) -> str:
    described = model.config.to_dict()
    kind = str(described.get("architecture") or described.get("family") or "network").split("/")[-1]
    network = extractor(model)
    units = "-".join(str(len(block.units)) for block in network.blocks)
    return f"{kind} {units} ({'plain' if network.config.halting == 'none' else network.config.halting.upper()})"


def _task(model: Model) -> str:
    if isinstance(model, DenseModel):
        what = "Detection of objects of" if model.config.family == "faster_rcnn" else "Segmentation of images into"
        return f"{what} {model.config.num_classes} classes, on the features of a residual network"
    if model.config.features_only:
        return "Feature maps of images, by a residual network"
    return f"Classification of images into {model.config.num_classes} classes, by a residual network"


def _example(model: Model) -> str:
    load = 'import sact\n\nmodel = sact.compile(sact.from_pretrained("FOLDER_OR_HUB_ID"))  # skips what has stopped\n'
    if isinstance(model, DenseModel):
        return _dense_example(load, model.config.family)
    config = model.config
    if model.preprocessing is not None and not config.features_only:
        return load + (
            'prediction = sact.predict(model, "photo.jpg")\n'
            "prediction.name, prediction.score, prediction.share  # class, its probability, share of the FLOPs\n"
        )
    output = "features" if config.features_only else "logits"
    return f"import torch\n{load}" + (
        f"images = torch.zeros(1, {config.in_channels}, 224, 224)  # yours, prepared as in training\n"
        f"{output}, ponder = model(images, return_ponder=True)\n"
        "ponder.flops  # [1], what it spent\n"
    )


def _dense_example(load: str, family: str) -> str:
    verb = "detect" if family == "faster_rcnn" else "segment"
    images = "[torch.rand(3, 480, 640)]" if family == "faster_rcnn" else "torch.rand(1, 3, 480, 640)"
    return f"import torch\n{load}" + (
        f"images = {images}  # yours, in [0, 1]\n"
        "answers, ponder = model(images, return_ponder=True)\n"
        "ponder.flops  # [1], what its extractor spent\n"
        f'result = sact.{verb}(model, "photo.jpg")  # the same from a file\n'
    )


def _results(results: Mapping[str, Any]) -> str:
    rows = []
    for key, (label, rounding) in PERCENTAGES.items():
        if _is_number(results.get(key)):
            rows.append((label, f"{_rounded(results[key], 2, rounding, 100)} %"))
    for key, label, rounding in (
        ("flops", "MFLOPs per image", ROUND_CEILING),
        ("dense_flops", "MFLOPs of the plain network", ROUND_FLOOR),
    ):
        found = results.get(key)
        mean, std = (found.get("mean"), found.get("std")) if isinstance(found, Mapping) else (found, None)
        if _is_number(mean):
            spread = f" ± {_rounded(std, 1, ROUND_CEILING, 1e-6)}" if _is_number(std) else ""
            rows.append((label, _rounded(mean, 1, rounding, 1e-6) + spread))
    placed = (*PERCENTAGES, "flops", "dense_flops", "blocks")
    for key, value in results.items():
        if key not in placed and (_is_number(value) or isinstance(value, str)):
            rows.append((_line(key), _line(value) if isinstance(value, str) else f"{value:.6g}"))
    tables = [_table(("measure", "value"), rows)] if rows else []
    blocks = results.get("blocks")
    if isinstance(blocks, Sequence) and blocks and all(isinstance(block, Mapping) for block in blocks):
        tables.append(_table(("block", "units", "mean", "std", "most", "ponder cost"), _block_rows(blocks)))
    return "## Results\n\n" + "\n\n".join(tables) if tables else ""


def _block_rows(blocks: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """What a position (or image) spends in each block, as `PonderStatistics` says it."""
    rows = []
    for index, block in enumerate(blocks):
        units, cost = _mapping(block, "units"), _mapping(block, "cost")
        numbers = [units.get("unit_count"), units.get("mean"), units.get("std"), units.get("max"), cost.get("mean")]
        rows.append((str(index), *(f"{number:.3g}" if _is_number(number) else "" for number in numbers)))
    return rows


def _network(model: Model) -> str:
    network = extractor(model)
    config = network.config
    described = config.to_dict()
    preprocessing = "" if network.preprocessing is None else f"`{json.dumps(network.preprocessing)}`"
    given = _dense_rows(model) if isinstance(model, DenseModel) else []
    rows = [
        *given,
        ("architecture", _line(described.get("architecture") or described.get("family"))),
        ("units per block", ", ".join(str(len(block.units)) for block in network.blocks)),
        ("width of the first block", _line(described.get("base_channels", ""))),
        ("halting", "none" if config.halting == "none" else f"{config.halting}, eps {config.eps:g}"),
        ("output stride", _line(described.get("output_stride") or "")),
        ("classes", "" if config.features_only else str(config.num_classes)),
        ("channels of an image", str(config.in_channels)),
        ("parameters", f"{sum(parameter.numel() for parameter in model.parameters()):,}"),
        ("preprocessing", preprocessing),
    ]
    return f"## Network\n\n{_table(('what', 'value'), [row for row in rows if row[1]])}"


def _dense_rows(model: DenseModel) -> list[tuple[str, str]]:
    """What stands around the extractor."""
    described = model.config.to_dict()
    rows = [("model", _line(described["family"])), ("classes", str(model.config.num_classes))]
    for name in ("form", "head", "min_size", "max_size", "image_mean", "image_std"):
        if name in described:
            value = described[name]
            rows.append((name, _line(", ".join(map(str, value)) if isinstance(value, tuple) else value)))
    return rows


def _portable(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without what is only true of the machine that it ran on."""
    kept = {key: value for key, value in recipe.items() if key not in OF_THE_MACHINE and value is not None}
    if PurePath(str(kept.get("init", ""))).is_absolute():
        del kept["init"]
    return kept


def _mapping(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _rounded(value: float, digits: int, rounding: str, factor: float) -> str:
    """Decimal arithmetic, in which 0.29 is 29 % and not 28.99 %."""
    exact = Decimal(repr(value)) * Decimal(repr(factor))
    return str(exact.quantize(Decimal(1).scaleb(-digits), rounding))


def _line(value: Any) -> str:
    """Text on one line that Markdown and HTML leave alone."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(str(value).split()))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _yaml(values: Mapping[str, Any]) -> str:
    from huggingface_hub.utils import yaml_dump

    text = yaml_dump(dict(values), sort_keys=False)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}yaml\n{text}{fence}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
