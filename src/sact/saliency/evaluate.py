"""Ponder maps against human eye fixations, beside the baselines."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from ..drawing import FloatMap
from ..errors import InputError, require
from .baselines import human_map, one_human
from .figures import Row
from .fixations import FixationSet, Points, Stimulus, by_category, open_stimulus, split, spread
from .measures import CONVENTIONS, measure
from .postprocess import Parameters, PonderMap, best, blurred, centre_prior, fit_centre, resized, saliency_map, search
from .tally import ALL, Tally

PONDER, BLURRED, SALIENCY = "ponder map", "blurred", "blurred + centre"
CENTRE, UNIFORM, HUMAN = "centre prior", "uniform", "one human"
METHODS = (PONDER, BLURRED, SALIENCY, CENTRE, UNIFORM, HUMAN)
"""What is evaluated: the ponder map as it is, blurred, and mixed with the centre prior; and the baselines."""


@dataclass(frozen=True)
class Settings:
    """How parameters are found and what is shown.

    Attributes:
        blurs: deviations of the Gaussian to try, in pixels of the ponder map; a single one is taken as it is.
        weights: of the centre prior to try; a single one is taken as it is.
        train_share: of each category's images, on which they are found; the rest is evaluated on.
        seed: of that division and of the observers drawn for the one-human baseline.
        pictures: images to show.
        quiet: no progress bar.
    """

    blurs: Sequence[float] = (0, 2, 4, 8, 16, 32)
    weights: Sequence[float] = (0, 0.2, 0.4, 0.6, 0.8, 1)
    train_share: float = 0.2
    seed: int = 0
    pictures: int = 5
    quiet: bool = False

    def __post_init__(self) -> None:
        if not self.blurs or not self.weights:
            raise InputError("no blur or no weight of the centre prior to try is given; give at least one of each")
        for blur in self.blurs:
            Parameters(blur, 0, (1, 1))
        for weight in self.weights:
            Parameters(0, weight, (1, 1))


@dataclass
class Evaluation:
    """What came of it.

    Attributes:
        results: JSON-able: the division, parameters, conventions, problems, and all rows.
        rows: a dict per method and category ("all" first): counts, means and standard errors over images.
        shown: images with their maps, for the figure.
    """

    results: dict[str, Any]
    rows: list[dict[str, Any]]
    shown: list[Row] = field(default_factory=list)


def evaluate(fixations: FixationSet, ponder_map: PonderMap, settings: Settings | None = None) -> Evaluation:
    """Turn ponder maps into saliency maps and measure them.

    Images are read one at a time; in memory stay the fixations, sums, and the maps to be shown.

    Args:
        fixations: of `read_fixations`.
        ponder_map: from a picture to its ponder map, see `ponder_mapper`.
        settings: of the search for parameters.

    Raises:
        InputError: no image can be divided off to find parameters on, or none of a part can be read.
    """
    settings = settings or Settings()
    problems = list(fixations.problems)
    train, test = split(fixations.stimuli, settings.train_share, settings.seed)
    stream = partial(_with_maps, ponder_map=ponder_map, problems=problems, quiet=settings.quiet)
    parameters, blur_alone, found = _find_parameters(train, stream, settings)
    tally, shown = Tally(), []
    names = {one.name for one in spread(by_category(test), settings.pictures)} if settings.pictures else set()
    elsewhere = Elsewhere(test)
    for stimulus, picture, ponder in stream(test, "evaluating"):
        human = human_map(stimulus.points, stimulus.size, stimulus.degree)
        maps = _predictions(stimulus, ponder, parameters, blur_alone)
        others = elsewhere.for_image(stimulus)
        for method, prediction in maps.items():
            tally.add(stimulus.category, method, measure(prediction, stimulus.points, human, others))
        alone = one_human(stimulus, np.random.default_rng([settings.seed, zlib.crc32(stimulus.name.encode())]))
        if alone:
            truth = human_map(alone.others, stimulus.size, stimulus.degree)
            tally.add(stimulus.category, HUMAN, measure(alone.prediction, alone.others, truth, others))
        if stimulus.name in names:
            shown.append(Row.of(stimulus.name, picture, human, ponder, maps[SALIENCY]))
    if not tally:
        raise InputError(f"none of {len(test)} images could be evaluated; the first problem: {problems[0]}")
    rows = tally.rows(METHODS)
    results = {
        "images": {"train": len(train), "test": tally.count(ALL, SALIENCY)},
        "parameters": found,
        "one_human": _about_observers(fixations, tally),
        "human_map_deviation": [min(one.degree for one in test), max(one.degree for one in test)],
        "measures": CONVENTIONS,
        "rows": rows,
        "dropped_fixations": fixations.dropped,
        "problems": problems,
        "split": {
            "seed": settings.seed,
            "train_share": settings.train_share,
            "train": [one.name for one in train],
            "test": [one.name for one in test],
        },
    }
    return Evaluation(results, rows, shown)


class Elsewhere:
    """The fixations of all other images, brought to an image's size."""

    def __init__(self, stimuli: Sequence[Stimulus]) -> None:
        self._image = np.repeat(np.arange(len(stimuli)), [len(stimulus.points) for stimulus in stimuli])
        self._points = np.concatenate([stimulus.points for stimulus in stimuli])
        self._sizes = np.array([stimulus.size[::-1] for stimulus in stimuli])[self._image]
        self._index = {stimulus.name: index for index, stimulus in enumerate(stimuli)}

    def for_image(self, stimulus: Stimulus) -> Points:
        """Points [M, 2] in pixels of this image, of every image but it."""
        other = self._image != self._index[stimulus.name]
        scale = np.array(stimulus.size[::-1]) / self._sizes[other]
        points: Points = (self._points[other] * scale).astype(np.int32)
        return points


def _with_maps(
    stimuli: Sequence[Stimulus], doing: str, ponder_map: PonderMap, problems: list[str], quiet: bool
) -> Iterator[tuple[Stimulus, Image.Image, FloatMap]]:
    """Each image with its ponder map; what cannot be read is reported and left out."""
    bar: Iterable[Stimulus] = require("tqdm", "tasks").tqdm(stimuli, desc=doing, unit="image", disable=quiet)
    for stimulus in bar:
        try:
            picture = open_stimulus(stimulus)
        except InputError as error:
            problems.append(f"{error}; image left out")
            continue
        yield stimulus, picture, ponder_map(picture)


def _find_parameters(train: Sequence[Stimulus], stream: Any, settings: Settings) -> tuple[Parameters, float, dict]:
    """The best parameters on the training part, the best blur without a centre prior, and how they were found."""
    centre = fit_centre(train)
    blurs, weights = list(settings.blurs), list(settings.weights)
    if len(blurs) == len(weights) == 1:
        chosen = Parameters(blurs[0], weights[0], centre)
        return chosen, blurs[0], _describe(chosen, blurs[0], None)
    # Without a centre prior as well, to see what the map alone tells.
    tried = [0.0, *(weight for weight in weights if weight)]
    maps = ((stimulus, ponder) for stimulus, _, ponder in stream(train, "finding parameters"))
    table, count = search(maps, blurs, tried, centre)
    if not count:
        raise InputError(f"none of the {len(train)} images to find parameters on can be read")
    alone, _ = best(table[:, :1], blurs, tried[:1])
    allowed = [index for index, weight in enumerate(tried) if weight in weights]
    blur, weight = best(table[:, allowed], blurs, [tried[index] for index in allowed])
    grid = [
        {"blur": blurs[row], "centre_weight": tried[column], "AUC-Judd": float(table[row, column])}
        for row in range(len(blurs))
        for column in range(len(tried))
    ]
    chosen = Parameters(blur, weight, centre)
    return chosen, alone, _describe(chosen, alone, grid)


def _describe(parameters: Parameters, blur_alone: float, grid: list[dict[str, float]] | None) -> dict[str, Any]:
    return {
        "blur": parameters.blur,
        "centre_weight": parameters.centre_weight,
        "centre_deviation": parameters.centre,
        "blur_alone": blur_alone,
        "grid": grid,
    }


def _predictions(
    stimulus: Stimulus, ponder: FloatMap, parameters: Parameters, blur_alone: float
) -> dict[str, FloatMap]:
    return {
        PONDER: resized(ponder, stimulus.size),
        BLURRED: resized(blurred(ponder, blur_alone), stimulus.size),
        SALIENCY: saliency_map(ponder, stimulus.size, parameters),
        CENTRE: centre_prior(stimulus.size, parameters.centre),
        UNIFORM: np.ones(stimulus.size),
    }


def _about_observers(fixations: FixationSet, tally: Tally) -> str:
    if tally.count(ALL, HUMAN):
        return "one observer's fixations, blurred by about one degree, against those of all others"
    return f"not available: {fixations.no_observers or 'no image has two observers or more'}"
