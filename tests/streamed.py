"""Pictures to stream, and what is compared of what was written."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import sact


def draw(width: int = 80, height: int = 60, seed: int = 0) -> np.ndarray:
    """Noise to the left, grey to the right."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    pixels[:, : width // 2] = np.random.default_rng(seed).integers(0, 256, (height, width // 2, 3))
    return pixels


def spend(network: sact.AdaptiveNetwork, picture: Image.Image) -> sact.Ponder:
    """What the network spends on a picture as it is, scaled to [-1, 1] as `scenes` are."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        _, ponder = network(pixels, return_ponder=True)
    return ponder


def check_arrays(path: Path, ponder: sact.Ponder, size: tuple[int, int]) -> None:
    with np.load(path, allow_pickle=False) as arrays:
        assert set(arrays) == {"map", "block1_units", "block2_units", "size", "flops", "dense_flops"}
        finest = tuple(ponder.blocks[0].units.shape[1:])
        assert arrays["map"].dtype == np.float16 and arrays["map"].shape == finest
        np.testing.assert_allclose(arrays["map"], ponder.map(finest)[0], rtol=1e-3)
        for number, block in enumerate(ponder.blocks, start=1):
            assert arrays[f"block{number}_units"].dtype == np.uint8
            np.testing.assert_array_equal(arrays[f"block{number}_units"], block.units[0])
        assert tuple(arrays["size"]) == size
        assert arrays["flops"] == int(ponder.flops[0])
        assert arrays["dense_flops"] == ponder.dense_flops


def read_table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def tree(out: Path) -> dict[str, Any]:
    """Contents of all files by name; seconds, which differ from run to run, are left out."""
    found: dict[str, Any] = {}
    for path in out.rglob("*"):
        if path.is_file():
            name = path.relative_to(out).as_posix()
            if path.suffix == ".csv":
                found[name] = [{key: row[key] for key in row if key != "seconds"} for row in read_table(path)]
            elif path.suffix == ".jsonl":
                rows = map(json.loads, path.read_text().splitlines())
                found[name] = [{key: row[key] for key in row if key != "seconds"} for row in rows]
            else:
                found[name] = path.read_bytes()
    return found
