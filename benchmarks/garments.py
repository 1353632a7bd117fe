"""Fashion-MNIST's test items as cut-outs with transparency for `sact compose`, whose pictures may be passed on (MIT).

python benchmarks/garments.py --out runs/garments
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from study import ROOT

from sact.data.fashion_mnist import FASHION_CLASSES, load_items
from sact.data.scenes import cut_out

SIDE = 140
MARGIN = 2


def cutout(item: np.ndarray, inside: np.ndarray) -> Image.Image:
    """An item, grey, enlarged to `SIDE` pixels with a smooth edge.

    Args:
        item: uint8 [28, 28].
        inside: bool [28, 28], which pixels are the item's.
    """
    grey = Image.fromarray(item).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    opacity = Image.fromarray(255 * inside.astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return Image.merge("LA", (grey, opacity.filter(ImageFilter.GaussianBlur(1)))).convert("RGBA")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write Fashion-MNIST's test items as cut-outs.")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "garments")
    parser.add_argument("--each", type=int, default=30, help="of each class (%(default)s)")
    options = parser.parse_args()
    items, labels = (np.asarray(part) for part in load_items("test"))
    items = np.pad(items, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)))
    for label, name in enumerate(FASHION_CLASSES):
        folder = options.out / name.replace("/", "-")
        folder.mkdir(parents=True, exist_ok=True)
        for index in np.flatnonzero(labels == label)[: options.each]:
            cutout(items[index], cut_out(items[index : index + 1])[0]).save(folder / f"{index}.png")


if __name__ == "__main__":
    main()
