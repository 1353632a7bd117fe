"""Make a folder of pictures to teach a network with: this machine's photographs, and Tux Paint's stamps in them.

    python examples/photographs.py --out runs/photographs    # train/ and held_out/, kept apart by file

The photographs are those of Debian's wallpaper packages and scikit-image, the stamps are the photo cut-outs of its
package tuxpaint-stamps-default; a stamp or photograph of held_out/ is in no picture of train/. The pictures are derived
from files under several licences (GPL-2 for the stamps): they are for teaching here, not to be passed on.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from sact.data.photographs import load_photographs
from sact.errors import InputError

STAMPS = Path("/usr/share/tuxpaint/stamps")
KINDS = ("animals", "food", "hobbies", "household", "military", "plants", "seasonal", "space", "town", "vehicles")
SIDE = 480
HELD_OUT = 0.25
MOST_EQUAL = 0.35
"""Share of equal neighbouring pixels above which a cut-out is a drawing."""


def main(arguments: list[str] | None = None) -> int:
    """Write the folders; 2 if something is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/photographs"), help="folder to write (%(default)s)")
    parser.add_argument("--stamps", type=Path, default=STAMPS, help="folder of cut-outs (%(default)s)")
    parser.add_argument("--per-stamp", type=int, default=4, help="pictures with each cut-out (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        for split in ("train", "held_out"):
            count = write_split(split, options.stamps, options.out / split, options.per_stamp)
            print(f"{options.out / split}: {count} pictures")
    except InputError as error:
        print(f"photographs: {error}", file=sys.stderr)
        return 2
    return 0


def write_split(split: str, stamps: Path, folder: Path, per_stamp: int) -> int:
    """The photographs of a split, and each of its stamps pasted into several of them; how many pictures."""
    held_out = split == "held_out"
    photographs = [one for name in (("val", "test") if held_out else ("train",)) for one in load_photographs(name)]
    things = [path for path in find_stamps(stamps) if (fraction(path.name) < HELD_OUT) == held_out]
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(1 if held_out else 0)
    for photograph in photographs:
        picture = Image.fromarray(photograph.pixels)
        picture.save(folder / f"photo-{photograph.name.replace('/', '-')}.jpg", quality=92)
    for path in things:
        for number in range(per_stamp):
            background = Image.fromarray(photographs[generator.integers(len(photographs))].pixels)
            if number % 2:  # as in a catalogue
                background = Image.new(
                    "RGB", (SIDE, SIDE), tuple(int(value) for value in generator.integers(170, 256, 3))
                )
            scene = paste(Image.open(path).convert("RGBA"), background, generator)
            scene.save(folder / f"{path.stem}-{number}.jpg", quality=92)
    return len(photographs) + len(things) * per_stamp


def find_stamps(folder: Path) -> list[Path]:
    """Cut-outs that are photographs.

    Raises:
        InputError: there are none.
    """
    paths = [path for kind in KINDS for path in sorted((folder / kind).rglob("*.png")) if is_photograph(path)]
    if not paths:
        raise InputError(f"there are no cut-outs in {folder}; install some with: apt install tuxpaint-stamps-default")
    return paths


def is_photograph(path: Path) -> bool:
    """Whether a cut-out is large enough and no drawing."""
    with Image.open(path) as image:
        if min(image.size) < 120:
            return False
        pixels = np.asarray(image.convert("RGBA")).astype(np.int16)
    solid = pixels[..., 3] > 200
    both = solid[:, 1:] & solid[:, :-1]
    return bool(both.sum() > 2000 and (pixels[:, 1:, 1] == pixels[:, :-1, 1])[both].mean() < MOST_EQUAL)


def paste(stamp: Image.Image, background: Image.Image, generator: np.random.Generator) -> Image.Image:
    """A square crop of the background with the stamp at a random size (50 to 95 % of the side) and place."""
    side = min(background.size)
    left, top = (int(generator.integers(0, full - side + 1)) for full in background.size)
    scene = background.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    if generator.random() < 0.5:
        stamp = stamp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = generator.uniform(0.5, 0.95) * SIDE / max(stamp.size)
    size = (max(8, round(stamp.width * scale)), max(8, round(stamp.height * scale)))
    stamp = stamp.resize(size, Image.Resampling.LANCZOS)
    at = (int(generator.integers(0, SIDE - size[0] + 1)), int(generator.integers(0, SIDE - size[1] + 1)))
    scene.paste(stamp, at, stamp)
    return scene.convert("RGB")


def fraction(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


if __name__ == "__main__":
    raise SystemExit(main())
