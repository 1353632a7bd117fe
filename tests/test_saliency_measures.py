"""The measures against values worked out by hand, and against pysaliency's own evaluation of a data set."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from sact.saliency.baselines import human_map
from sact.saliency.evaluate import Elsewhere
from sact.saliency.measures import auc_judd, measure, shuffled_auc
from sact.saliency.tally import Tally

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pysaliency = pytest.importorskip("pysaliency")


def points(*pairs: tuple[int, int]) -> np.ndarray:
    return np.array(pairs, dtype=np.int32).reshape(-1, 2)


MAP = np.array([[4.0, 3.0], [2.0, 1.0]])


def test_auc_judd_by_hand() -> None:
    assert auc_judd(MAP, points((0, 0))) == 1  # the greatest value, nothing above it
    # Fixated: 3. At that threshold one of three other pixels counts: lines (0, 0), (1/3, 1), (1, 1).
    assert auc_judd(MAP, points((1, 0))) == pytest.approx(1 / 6 + 2 / 3)
    # Fixated: 3 and 1. At 3: half of the fixations, one of two others; at 1: all.
    assert auc_judd(MAP, points((1, 0), (1, 1))) == pytest.approx(1 / 2 * 1 / 2 / 2 + 1 / 2 * (1 / 2 + 1) / 2)


def test_auc_of_a_perfect_and_of_a_uniform_map() -> None:
    fixations = points((2, 1), (3, 1), (2, 2))
    perfect = np.zeros((5, 6))
    perfect[fixations[:, 1], fixations[:, 0]] = 1
    elsewhere = points((0, 0), (5, 4), (4, 0))
    assert auc_judd(perfect, fixations) == 1
    assert shuffled_auc(perfect, fixations, elsewhere) == 1
    assert auc_judd(np.ones((5, 6)), fixations) == 0.5
    assert shuffled_auc(np.ones((5, 6)), fixations, elsewhere) == 0.5
    # Thresholds lie at fixated values alone, so the worst map is one line from (0, 0) to (1, 1).
    assert auc_judd(-perfect, fixations) == 0.5


def test_auc_is_undefined_where_there_is_nothing_else() -> None:
    assert math.isnan(auc_judd(MAP, points((0, 0), (1, 0), (0, 1), (1, 1))))
    assert math.isnan(shuffled_auc(MAP, points((0, 0)), points()))


def test_shuffled_auc_by_hand() -> None:
    # 3 beats 2 and 1, ties with 3, loses to 4.
    elsewhere = points((0, 0), (1, 0), (0, 1), (1, 1))
    assert shuffled_auc(MAP, points((1, 0)), elsewhere) == (2 + 0.5) / 4


def test_the_others_by_hand() -> None:
    human = np.array([[1.0, 0.0], [0.0, 0.0]])
    values = measure(MAP, points((0, 0), (1, 1)), human, points())
    deviation = math.sqrt(1.25)  # of 1, 2, 3, 4 around 2.5
    assert values["NSS"] == pytest.approx(((4 - 2.5) / deviation + (1 - 2.5) / deviation) / 2)
    assert values["CC"] == pytest.approx(math.sqrt(0.6))  # covariance 0.375, deviations 1.25 ** 0.5 and 0.1875 ** 0.5
    assert values["SIM"] == pytest.approx(4 / 10)
    assert values["KL"] == pytest.approx(math.log(10 / 4))  # all of the human map lies where the map has 4 of 10
    assert math.isnan(values["sAUC"])


def test_a_uniform_map() -> None:
    human = np.array([[1.0, 0.0], [0.0, 0.0]])
    values = measure(np.ones((2, 2)), points((0, 0)), human, points((1, 1)))
    expected = {"AUC-Judd": 0.5, "sAUC": 0.5, "NSS": 0, "CC": 0, "KL": math.log(4), "SIM": 0.25}
    assert values == pytest.approx(expected)


def test_human_map_counts_and_blurs() -> None:
    sharp = human_map(points((1, 0), (1, 0), (2, 1)), (3, 4), sigma=0)
    assert sharp.tolist() == [[0, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    smooth = human_map(points((2, 1)), (3, 5), sigma=1)
    assert smooth.sum() == pytest.approx(1)
    assert smooth.argmax() == 1 * 5 + 2


@pytest.fixture(scope="module")
def world() -> tuple[list, list, list]:
    """Saliency maps, fixations and image sizes of three images of different sizes."""
    rng = np.random.default_rng(0)
    sizes = [(12, 20), (16, 10), (9, 9)]
    # Few distinct values, so that there are ties.
    maps = [rng.integers(0, 8, size).astype(float) for size in sizes]
    fixations = [
        np.stack([rng.integers(0, width, 7), rng.integers(0, height, 7)], axis=1).astype(np.int32)
        for height, width in sizes
    ]
    return maps, fixations, sizes


def test_as_pysaliency_evaluates_a_data_set(world: tuple[list, list, list]) -> None:
    """The same numbers as of pysaliency's models and data sets, which hold everything in memory."""
    from sact.saliency.fixations import Stimulus
    from sact.saliency.measures import _trapz

    maps, fixations, sizes = world
    pictures = [np.full((*size, 3), index, dtype=np.uint8) for index, size in enumerate(sizes)]
    stimuli = pysaliency.Stimuli(pictures)
    data = pysaliency.FixationTrains.from_fixation_trains(
        [one[:, 0] for one in fixations],
        [one[:, 1] for one in fixations],
        [np.arange(len(one)) for one in fixations],
        list(range(len(fixations))),
        [0] * len(fixations),
    )

    class Known(pysaliency.SaliencyMapModel):
        def __init__(self, maps: list[np.ndarray]) -> None:
            super().__init__(caching=False)
            self.maps = maps

        def _saliency_map(self, stimulus: np.ndarray) -> np.ndarray:
            return self.maps[int(stimulus[0, 0, 0])]

    model = Known(maps)
    human = pysaliency.FixationMap(stimuli, data, kernel_size=2)
    ours = Tally()
    seen = [Stimulus(str(i), "x", None, sizes[i], fixations[i], (), 2.0) for i in range(len(sizes))]  # type: ignore[arg-type]
    elsewhere = Elsewhere(seen)
    for stimulus, saliency in zip(seen, maps, strict=True):
        truth = human_map(stimulus.points, stimulus.size, 2)
        ours.add("x", "model", measure(saliency, stimulus.points, truth, elsewhere.for_image(stimulus)))
    mean = ours.rows(["model"])[0]
    with _trapz():
        assert mean["AUC-Judd"] == pytest.approx(model.AUC_Judd(stimuli, data, jitter=False), abs=1e-12)
        shuffled = model.AUC(stimuli, data, nonfixations="shuffled", average="image")
    assert mean["sAUC"] == pytest.approx(shuffled, abs=1e-12)
    assert mean["NSS"] == pytest.approx(model.NSS(stimuli, data, average="image"), abs=1e-12)
    assert mean["CC"] == pytest.approx(model.CC(stimuli, human), abs=1e-12)
    assert mean["SIM"] == pytest.approx(model.SIM(stimuli, human), abs=1e-12)
    regularised = {"minimum_value": 0, "log_regularization": 2.2204e-16, "quotient_regularization": 2.2204e-16}
    with np.errstate(divide="ignore"):
        divergence = model.image_based_kl_divergence(stimuli, human, **regularised)
    assert mean["KL"] == pytest.approx(divergence, abs=1e-9)


def test_jitter_of_judd_is_what_ties_count_on_average(world: tuple[list, list, list]) -> None:
    """Tied pixels ordered at random, as the authors of the measure do, give our number on average."""
    rng = np.random.default_rng(0)
    saliency, fixations = (
        np.repeat([0.0, 1.0], 200).reshape(20, 20),
        points(*[(x, y) for x in range(0, 20, 2) for y in (3, 8, 12)]),
    )
    jittered = [auc_judd(saliency + 1e-7 * rng.standard_normal(saliency.shape), fixations) for _ in range(50)]
    # Thresholds at K fixated values alone give about 1 / 2K more than thresholds at all values.
    assert np.mean(jittered) == pytest.approx(auc_judd(saliency, fixations) + 0.5 / len(fixations), abs=0.02)


def test_tally_by_hand() -> None:
    tally = Tally()
    for category, value in (("a", 1.0), ("a", 2.0), ("b", 6.0)):
        tally.add(category, "model", {"NSS": value, "sAUC": math.nan if category == "a" else 0.5})
    everything, a, b = tally.rows(["model"])
    assert (everything["category"], everything["images"], everything["NSS"]) == ("all", 3, 3.0)
    assert everything["NSS se"] == pytest.approx(math.sqrt(7 / 3))  # variance (4 + 1 + 9) / 2 = 7
    assert everything["sAUC"] == 0.5 and everything["sAUC se"] is None
    assert (a["category"], a["NSS"], a["sAUC"]) == ("a", 1.5, None)
    assert (b["category"], b["images"], b["NSS se"]) == ("b", 1, None)
