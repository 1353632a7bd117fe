"""The tables of detection and segmentation: measures what `benchmarks/dense.py` trained and writes it into the docs.

    python benchmarks/dense_report.py --task detection       # docs/detection.md
    python benchmarks/dense_report.py --task segmentation    # docs/segmentation.md

Quality, FLOPs and ponder cost are those of `sact eval` on the test pictures. Time is of whole models on single
pictures, all taking turns: the plain model of full depth with its extractor in every runtime, and every model in our
engine. Everything but the extractor is the same code in all of them. The picture is of other images, which may be
passed on: garments on photographs; docs/saliency.md says how they are made.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from dense import DEPTHS, TAUS
from dense_times import PEERS, Contestant, contestants, spread, take_turns
from PIL import Image
from study import ROOT
from study_report import fill
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

import sact
from sact.bench.report import conditions
from sact.data import create_dataset
from sact.files import write_json
from sact.maps import save_png
from sact.tasks.task import find_task

QUALITY = {"detection": "map", "segmentation": "miou"}
TITLES = {"map": "mAP", "map50": "AP50", "miou": "mean IoU", "accuracy": "pixels right"}
SHOWN = {"detection": ("map", "map50"), "segmentation": ("miou", "accuracy")}
WAYS = {"eager": "PyTorch", "compile": "torch.compile", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
TIMED_PICTURES = 40
SHOWN_PICTURES = 9
ROUNDS = 80


def names(task: str) -> list[str]:
    """The networks of a table, in its order."""
    return [*DEPTHS, *(f"sact-{tau:g}" for tau in TAUS[task])]


def main(arguments: list[str] | None = None) -> int:
    """Measure and write; only write with `--report`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(QUALITY), required=True)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "dense")
    parser.add_argument("--data", type=Path, default=ROOT / "runs" / "composed")
    parser.add_argument(
        "--garments", type=Path, default=ROOT / "runs" / "composed-garments", help="pictures to be shown (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of every contestant (%(default)s)")
    parser.add_argument("--report", action="store_true", help="only write the page from what was measured")
    options = parser.parse_args(arguments)
    folder = options.folder / options.task
    if not options.report:
        measure(options, folder)
    measured = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    page = ROOT / "docs" / f"{options.task}.md"
    fill(page, "quality", quality_table(options.task, measured))
    fill(page, "time", time_table(measured))
    save_png(contact_sheet(options.task, folder, options.garments), page.with_suffix(".png"))
    return 0


def contact_sheet(task: str, folder: Path, garments: Path) -> Image.Image:
    """What the SACT network of the least tau finds in pictures that may be shown, and where it worked on them."""
    model = sact.compile(sact.from_pretrained(folder / f"sact-{min(TAUS[task]):g}" / "model").eval())
    name = {"detection": "coco", "segmentation": "coco_segmentation"}[task]
    dataset = create_dataset(name, "test", data_dir=garments, length=SHOWN_PICTURES, class_agnostic=True)
    with torch.inference_mode():
        sheet: Image.Image = find_task(task).draw_sheet(model, dataset, SHOWN_PICTURES)
    return sheet


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Evaluate and time everything, into measured.json."""
    models: dict[str, Any] = {}
    rows = []
    for name in names(options.task):
        model = folder / name / "model"
        path = folder / name / "test.json"
        if not path.is_file():
            command = [sys.executable, "-m", "sact", "eval", str(model), "--split", "test", "--json", str(path)]
            subprocess.run(
                [*command, "--data-dir", str(options.data), "--quiet"], check=True, stdout=subprocess.DEVNULL
            )
        rows.append({"name": name, "results": json.loads(path.read_text(encoding="utf-8"))})
        models[name] = sact.from_pretrained(model).eval()
    with torch.inference_mode():
        inputs, inside = pictures(options, models["full"])
        found = contestants(models, "full", inside[0].shape)
        full_flops = found[0].model.network.ponder.dense_flops
        take_turns(found, inputs, inside, int(full_flops), options.rounds)
    measured = {
        "rows": rows,
        "times": [timed(one) for one in found],
        "shape": list(inside[0].shape),
        "pictures": len(inputs),
        "test_pictures": len(json.loads(annotation_file(options).read_text(encoding="utf-8"))["images"]),
        "rounds": options.rounds,
        "conditions": conditions(torch.get_num_threads()),
    }
    write_json(folder / "measured.json", measured)


def pictures(options: argparse.Namespace, model: Any) -> tuple[list[Any], list[Tensor]]:
    """Test pictures of one size, as the models take them and as their extractors get them."""
    images = json.loads(annotation_file(options).read_text(encoding="utf-8"))["images"]
    size = (images[0]["width"], images[0]["height"])
    chosen = [image["file_name"] for image in images if (image["width"], image["height"]) == size][:TIMED_PICTURES]
    inputs, inside = [], []
    for name in chosen:
        tensor = pil_to_tensor(Image.open(options.data / "test" / name).convert("RGB")).float() / 255
        whole: Any = [tensor] if options.task == "detection" else tensor[None]
        caught: list[Tensor] = []
        hook = model.network.register_forward_pre_hook(lambda _, given, caught=caught: caught.append(given[0]))
        model(whole)
        hook.remove()
        inputs.append(whole)
        inside.append(caught[0])
    return inputs, inside


def annotation_file(options: argparse.Namespace) -> Path:
    """The file that describes the test pictures."""
    path: Path = options.data / "annotations" / "instances_test.json"
    return path


def timed(one: Contestant) -> dict[str, Any]:
    """A contestant's times as plain numbers."""
    share = float(torch.tensor(one.share).mean())
    return {
        "name": one.name,
        "way": one.way,
        "share": share,
        "whole": spread(one.seconds),
        "extractor": spread(one.extractor_seconds),
    }


def quality_table(task: str, measured: dict[str, Any]) -> str:
    """The paper's Table 1: FLOPs against quality."""
    shown = SHOWN[task]
    full = measured["rows"][0]["results"]
    heads = [
        "extractor",
        "units",
        "FLOPs of the extractor",
        *(TITLES[key] for key in shown),
        "ponder cost on objects",
        "elsewhere",
    ]
    lines = [row_of(heads), row_of(["---"] * len(heads))]
    for row in measured["rows"]:
        results = row["results"]
        ratio = results["dense_flops"] / full["dense_flops"]
        flops = f"{100 * results['share'] * ratio:.1f} ± {100 * results['share_std'] * ratio:.1f} %"
        units = " ".join(f"{block['units']['mean']:.2f}".rstrip("0").rstrip(".") for block in results["blocks"])
        costs = [results["ponder_inside"], results["ponder_outside"]]
        cells = [f"{cost:.2f}" if cost is not None else "" for cost in costs]
        lines.append(
            row_of([title(row["name"]), units, flops, *(f"{100 * results[key]:.2f}" for key in shown), *cells])
        )
    command = f"`python benchmarks/dense.py` and `python benchmarks/dense_report.py --task {task}`"
    lines += [
        "",
        f"{command}, {machine(measured)}; {measured['test_pictures']} test pictures, of cut-outs and photographs that "
        "are in no training picture; one training run each; FLOPs relative to the plain extractor of full depth, ± "
        "the standard deviation over pictures; units: mean per block.",
    ]
    return "\n".join(lines)


def time_table(measured: dict[str, Any]) -> str:
    """Every contestant's time, the fastest dense one as the measure."""
    times = measured["times"]
    dense = [one for one in times if one["name"] == "full" and one["way"] in PEERS]
    fastest = min(dense, key=lambda one: one["whole"]["median"])
    fastest_extractor = min(dense, key=lambda one: one["extractor"]["median"])
    heads = ["extractor", "runs in", "its FLOPs", "its time", "realised share", "whole model", "speed-up"]
    lines = [row_of(heads), row_of(["---"] * len(heads))]
    for one in times:
        speed_up = fastest_extractor["extractor"]["median"] / one["extractor"]["median"]
        ours = one not in dense
        cells = [
            title(one["name"]),
            WAYS.get(one["way"], f"`{one['way']}`, ours"),
            f"{100 * one['share']:.1f} %",
            milliseconds(one["extractor"]),
            f"{100 * speed_up * one['share']:.1f} %" if ours else "",
            milliseconds(one["whole"]),
            f"{fastest['whole']['median'] / one['whole']['median']:.2f}",
        ]
        lines.append(row_of(cells))
    shape = "x".join(map(str, measured["shape"]))
    lines += [
        "",
        f"The same command, {machine(measured)}, {measured['conditions']['threads']} threads, float32; medians and "
        f"quartiles of {measured['rounds']} interleaved rounds over {measured['pictures']} pictures, {shape} as the "
        f"extractor gets them; speed-up against the whole model with its extractor in {WAYS[fastest['way']]}; realised "
        f"share: the extractor's speed-up against {WAYS[fastest_extractor['way']]} by what it saves of the FLOPs.",
    ]
    return "\n".join(lines)


def machine(measured: dict[str, Any]) -> str:
    """Date, processor and versions."""
    held = measured["conditions"]
    versions = ", ".join(f"{name} {version}" for name, version in held["versions"].items())
    return f"{held['date']}, {held['processor']} ({held['cores']} cores), {versions}"


def title(name: str) -> str:
    """A network's name in the tables."""
    if name in DEPTHS:
        return f"plain, {name} depth"
    return f"SACT, tau {name.removeprefix('sact-')}"


def milliseconds(one: dict[str, float]) -> str:
    """Median and quartiles."""
    return f"{one['median']:.1f} ms ({one['lower_quartile']:.1f} to {one['upper_quartile']:.1f})"


def row_of(cells: Sequence[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    raise SystemExit(main())
