"""Detection and segmentation on composed pictures: trains every network of both tables.

    python benchmarks/dense.py [--folder runs/dense] [--data runs/composed] [--jobs 2]

In the shape of the paper's Table 1: a plain extractor of full and of half depth, and SACT of several tau. The
segmenters start from classifiers of the objects, cut from the training pictures, and the detectors from the
segmenters' extractors: what learns at every pixel needs fewer pictures. Segmenters learn on small pictures first,
where a step costs less than half. Every network is trained in two phases, on as many pictures each: a plain one first,
then one in which it stays plain or becomes SACT. What is finished is not trained again, and what was interrupted goes
on. `benchmarks/dense_report.py` measures them and writes tables. Hours on two cores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from study import ROOT, Study

from sact.errors import InputError

DEPTHS = {"full": (3, 4, 6, 3), "half": (2, 2, 3, 2)}
TAUS = {"segmentation": (0.01, 0.03), "detection": (0.01, 0.03, 0.06)}
SMALL_SIDE, SMALL_STEPS = 128, 2500
MARGIN = 0.25
"""Of an object's longer side, around it in its crop."""
LEAST_SIDE = 16
CROP_SIDE = 112


def write_crops(data: Path, folder: Path) -> None:
    """Cut every object out of the pictures, squares in one folder per category, where that is not done yet.

    Raises:
        InputError: there are no composed pictures.
    """
    for split in ("train", "val"):
        path = data / "annotations" / f"instances_{split}.json"
        if (folder / split / "done").is_file():
            continue
        if not path.is_file():
            raise InputError(f"there is no {path}; make the pictures first, see docs/compose.md")
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {category["id"]: category["name"] for category in content["categories"]}
        files = {image["id"]: image["file_name"] for image in content["images"]}
        for name in names.values():
            (folder / split / name).mkdir(parents=True, exist_ok=True)
        by_image: dict[int, list[dict[str, Any]]] = {}
        for annotation in content["annotations"]:
            by_image.setdefault(annotation["image_id"], []).append(annotation)
        for image, objects in by_image.items():
            picture = Image.open(data / split / files[image]).convert("RGB")
            for annotation in objects:
                crop = square(picture, np.asarray(annotation["bbox"], dtype=float))
                if crop is not None:
                    name = names[annotation["category_id"]]
                    crop.save(folder / split / name / f"{annotation['id']}.jpg", quality=92)
        (folder / split / "done").touch()


def square(picture: Image.Image, box: np.ndarray) -> Image.Image | None:
    """The square around a box [x, y, width, height] with a margin; None where it is too small to be worth it."""
    x, y, width, height = box
    if max(width, height) < LEAST_SIDE:
        return None
    half = max(width, height) * (0.5 + MARGIN)
    middle = x + width / 2, y + height / 2
    corners = (middle[0] - half, middle[1] - half, middle[0] + half, middle[1] + half)
    return picture.transform((CROP_SIDE, CROP_SIDE), Image.Transform.EXTENT, corners, Image.Resampling.BILINEAR)


def first_phases(study: Study, task: str, data: Path, name: str, before: str, *fields: str) -> None:
    """Queue plain networks of both depths, the quicker first; `before` names what each starts from."""
    for depth, units in reversed(DEPTHS.items()):
        start = before.format(depth)
        study.start(
            f"{task}/{depth}/{name}",
            f"composed_{task}_plain",
            f"--data_dir={data}",
            f"--units={list(units)}",
            f"--init={study.model(start)}",
            *fields,
            after=start,
        )


def second_phases(study: Study, task: str, data: Path) -> None:
    """Queue what stands in the table."""
    common = (f"--data_dir={data}",)
    start = f"{task}/full/first"
    for tau in TAUS[task]:
        init = f"--init={study.model(start)}"
        study.start(f"{task}/sact-{tau:g}", f"composed_{task}_sact", *common, f"--tau={tau:g}", init, after=start)
    for depth, units in DEPTHS.items():
        start = f"{task}/{depth}/first"
        fields = (f"--units={list(units)}", "--halting=none", "--tau=0", f"--init={study.model(start)}")
        study.start(f"{task}/{depth}", f"composed_{task}_sact", *common, *fields, after=start)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the networks of the tables of detection and segmentation.")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "dense")
    parser.add_argument("--data", type=Path, default=ROOT / "runs" / "composed")
    parser.add_argument("--jobs", type=int, default=2, help="networks at a time (%(default)s)")
    options = parser.parse_args()
    write_crops(options.data, options.folder / "crops")
    study = Study(options.folder, options.jobs, [])
    for depth, units in DEPTHS.items():
        study.start(
            f"crops_{depth}", "composed_crops", f"--units={list(units)}", f"--data_dir={options.folder / 'crops'}"
        )
    small = (f"--image_size={SMALL_SIDE}", f"--max_steps={SMALL_STEPS}")
    first_phases(study, "segmentation", options.data, "small", "crops_{}", *small)
    before = "segmentation/{}/small"
    for task in ("segmentation", "detection"):
        first_phases(study, task, options.data, "first", before)
        before = "segmentation/{}/first"
    for task in TAUS:
        second_phases(study, task, options.data)
    study.wait()


if __name__ == "__main__":
    main()
