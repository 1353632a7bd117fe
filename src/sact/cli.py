"""The command line: the same verbs and argument names as the library.

Whatever a user can get wrong is one line on standard error and exit code 2. Imports that a verb alone needs are made
inside it, so that no extra is needed for a verb that does not use it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__
from .errors import InputError, MissingExtraError, SactError, require
from .models.network import MIN_SIZE

if TYPE_CHECKING:
    from .models import AdaptiveNetwork
    from .predict import Prediction

DEFAULT_MODEL = "efficientnet_lite2"
"""The packaged network that knows ImageNet's classes."""

DESCRIPTION = """\
Residual networks that decide, position by position, how many of their units to run.

  sact train recipes/scenes_sact.yaml --tau 0.02    train a recipe, any field overridden
  sact eval runs/scenes_sact/model                  accuracy, FLOPs and ponder cost
  sact predict photo.jpg --out pictures             class, cost, and the map of where the work went
  sact flops resnet101 --size 224                   the paper's FLOP count
  sact bench resnet101 --share 0.3,0.5              time against the plain network in other runtimes
  sact adapt timm/resnet50 --images DIR --out model a trained network learns where to stop
  sact import-tf checkpoint --out model             the authors' released weights
  sact serve                                        a page: drop a photograph, turn the budget
  sact detect street.jpg                            boxes, and the map of where the work went
  sact segment street.jpg                           the same with a class for every pixel
  sact compose --cutouts DIR --backgrounds DIR --out DIR   a data set for both
  sact saliency --dataset cat2000 DIR               ponder maps against where people looked
  sact maps VIDEO --out DIR                         the ponder maps of many pictures
"""


COMMANDS = (
    ("detect", "detect_command", "boxes around objects, and where the work went"),
    ("segment", "segment_command", "a class for every pixel, and where the work went"),
    ("compose", "compose_command", "a data set of cut-outs on photographs, in COCO's format"),
    ("saliency", "saliency.command", "ponder maps against where people looked"),
    ("maps", "streaming.command", "ponder maps of folders, videos and large pictures"),
)
"""Verbs with a module of their own, which has `add_options` and `run`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for a bad argument or input, 130 when interrupted, and
    1 where `sact bench` refused to time something, as it gave another answer.
    """
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.verb != "train":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        code: int | None = options.run(options, rest) if options.verb == "train" else options.run(options)
    except SactError as error:
        print(f"sact {options.verb}: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a disk that is full, a file that went away
        name = f"{error.filename}: " if error.filename else ""
        print(f"sact {options.verb}: {name}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"sact {options.verb}: interrupted", file=sys.stderr)
        return 130
    return code or 0


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage.

    Attributes:
        more_help: makes what stands behind the usual help, when that is asked for.
    """

    more_help: Callable[[], str] = staticmethod(str)

    def format_help(self) -> str:
        """The help with what stands behind it."""
        return super().format_help() + self.more_help()

    def error(self, message: str) -> NoReturn:
        """Print the message and leave with exit code 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def make_parser() -> Parser:
    """The parser of all verbs."""
    parser = Parser(prog="sact", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"sact {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", title="verbs")
    _add_train(verbs)
    _add_eval(verbs)
    _add_predict(verbs)
    _add_flops(verbs)
    _add_bench(verbs)
    _add_adapt(verbs)
    _add_import_tf(verbs)
    _add_export(verbs)
    _add_serve(verbs)
    for verb, module, summary in COMMANDS:
        _add_command(verbs, verb, module, summary)
    return parser


def _add_train(verbs: Any) -> None:
    train = verbs.add_parser(
        "train",
        help="train a recipe",
        usage="sact train [-h] [--out DIR] [--resume] [--quiet] [--FIELD VALUE ...] RECIPE",
        description="Train a RECIPE, a YAML file of the fields below; see recipes/. An option overrides the field of "
        "its name, before the recipe or behind it: --tau 0.02 --units [2,3,4].",
        allow_abbrev=False,
    )
    train.add_argument("--out", metavar="DIR", help="folder of the run (default: runs/NAME_OF_RECIPE)")
    train.add_argument("--resume", action="store_true", help="continue the run in that folder")
    train.add_argument("--quiet", action="store_true", help="no progress bar")
    train.set_defaults(run=run_train)
    train.more_help = _recipe_fields


def _add_eval(verbs: Any) -> None:
    evaluate = verbs.add_parser(
        "eval",
        help="accuracy, FLOPs and ponder cost over a data set",
        description="Evaluate a network, detector or segmenter: accuracy, mean average precision or mean IoU, FLOPs "
        "and ponder cost. What `sact train` trained remembers its data; options override it.",
    )
    evaluate.add_argument("model", metavar="MODEL", help="folder, hub id, or packaged network")
    evaluate.add_argument("--data", help="scenes, fashion_mnist, cifar10, imagenet, coco or coco_segmentation")
    evaluate.add_argument("--data-dir", metavar="DIR", help="where the data lies")
    evaluate.add_argument("--split", default="val", choices=["train", "val", "test"], help="of the data (%(default)s)")
    evaluate.add_argument("--size", type=int, help="side of a classifier's images in pixels")
    evaluate.add_argument("--length", type=int, help="evaluate this many images")
    evaluate.add_argument("--batch-size", type=int, help="images at a time (default: 100, but 1 where sizes differ)")
    evaluate.add_argument("--engine", default="masked", help="masked, gather, native, triton or auto (%(default)s)")
    evaluate.add_argument("--json", metavar="FILE", default="eval.json", help="where the results go (%(default)s)")
    evaluate.add_argument("--quiet", action="store_true", help="no progress bar")
    evaluate.set_defaults(run=run_eval)


def _add_predict(verbs: Any) -> None:
    predict = verbs.add_parser(
        "predict",
        help="classify images and draw where the work went",
        description="Classify images. For each: class, score, share of the plain network's FLOPs, and pictures.",
    )
    predict.add_argument("images", metavar="IMAGE", nargs="+", help="JPEG, PNG or WebP files, or folders of them")
    predict.add_argument("--out", metavar="DIR", default="predictions", help="folder of the pictures (%(default)s)")
    predict.add_argument("--model", help="folder, hub id, or packaged network (%(default)s)", default=DEFAULT_MODEL)
    predict.add_argument("--engine", default="auto", help="auto, masked, gather, native or triton (%(default)s)")
    predict.add_argument("--size", type=int, help="side in pixels that images are brought to (default: as in training)")
    predict.add_argument("--budget", type=float, help="mean share of the dense FLOPs (default: the network's own)")
    predict.add_argument("--cap", type=float, help="share of the dense FLOPs that no image may exceed")
    predict.add_argument("--npz", action="store_true", help="save cost, unit counts and halting distribution per block")
    predict.set_defaults(run=run_predict)


def _add_flops(verbs: Any) -> None:
    flops = verbs.add_parser(
        "flops",
        help="the paper's FLOP count of a network",
        description="Count FLOPs (2 x multiply-adds of convolutions), with every unit run and with the fewest.",
    )
    _add_network(flops)
    flops.add_argument("--json", action="store_true", help="print JSON")
    flops.set_defaults(run=run_flops)


def _add_network(verb: argparse.ArgumentParser) -> None:
    """What names a network, made anew or saved, and the size of its images."""
    verb.add_argument("model", metavar="MODEL", help="name of a network (resnet101, cifar_resnet32, ...) or a folder")
    verb.add_argument("--halting", default=None, choices=["none", "act", "sact"])
    verb.add_argument("--units", type=_units, help="units per block, like 3,4,6,3")
    verb.add_argument("--base-channels", type=int)
    verb.add_argument("--num-classes", type=int)
    verb.add_argument("--in-channels", type=int, help="channels of the images")
    verb.add_argument("--size", type=_size, default=None, help="image size: 224 or 480x640 (HxW)")


def _add_bench(verbs: Any) -> None:
    bench = verbs.add_parser(
        "bench",
        help="time engines against the plain network in other runtimes",
        description="Time a network in our engines beside its plain network in eager PyTorch, torch.compile, ONNX "
        "Runtime and OpenVINO. Outputs are compared first; what differs is not timed, and the exit code is 1. "
        "Realised share: speed-up against the fastest of them, divided by (plain FLOPs / our FLOPs).",
    )
    _add_network(bench)
    bench.add_argument("--batch", type=int, default=1, help="images per run (%(default)s)")
    bench.add_argument(
        "--share",
        type=_shares,
        help="do these shares of the plain network's FLOPs, like 0.3,0.5, whatever the scores say; 1 runs every unit "
        "everywhere (default: 0.5 for a network without trained weights, else its own halting)",
    )
    bench.add_argument("--masks", default="scenes", help="where units run then: scenes (objects), random (%(default)s)")
    bench.add_argument("--images", metavar="IMAGE", nargs="+", help="images or folders (default: scenes, or noise)")
    bench.add_argument("--batches", type=int, default=16, help="different batches of scenes (%(default)s)")
    bench.add_argument("--engines", default="native,masked", help="masked, gather, native (%(default)s)")
    bench.add_argument("--peers", default="eager,compile,onnxruntime,openvino", help="the others (%(default)s)")
    bench.add_argument("--threads", type=int, help="of every contestant (default: PyTorch's choice)")
    bench.add_argument("--seconds", type=float, default=10.0, help="how long they take turns (%(default)s)")
    bench.add_argument("--seed", type=int, default=0)
    bench.add_argument("--json", metavar="FILE", nargs="?", const="-", help="write JSON; without FILE print it alone")
    bench.set_defaults(run=run_bench)


def _add_adapt(verbs: Any) -> None:
    adapt = verbs.add_parser(
        "adapt",
        help="teach a trained network where to stop, from photographs without labels",
        description="Make a trained network adaptive, and teach it from photographs where to stop. The network as it "
        "was is the teacher. Writes the network, results.json and a contact sheet; prints a table before and after.",
    )
    adapt.add_argument(
        "model",
        metavar="MODEL",
        help="timm/NAME, torchvision/NAME, efficientnet_lite0 or efficientnet_lite2 (weights from a package), or a "
        "folder to go on with",
    )
    adapt.add_argument("--images", metavar="DIR", nargs="+", required=True, help="folders of photographs")
    adapt.add_argument("--held-out", metavar="DIR", nargs="+", help="judge on these (default: a fifth of all)")
    adapt.add_argument("--out", metavar="DIR", required=True, help="folder to write")
    adapt.add_argument("--weights", metavar="FILE", type=Path, help="safetensors of the network, not a download")
    adapt.add_argument("--tau", type=float, help="weight of the ponder cost: larger means less computation")
    adapt.add_argument("--share", type=float, help="wanted share of the dense FLOPs instead (default: 0.8)")
    adapt.add_argument("--learn", default="heads", help="heads, norms (these too) or all (%(default)s)")
    adapt.add_argument("--output", default="mean", help="mean of the states, or halted: the last one (%(default)s)")
    adapt.add_argument("--halting", default="sact", choices=["act", "sact"], help="per image or position (%(default)s)")
    adapt.add_argument("--blocks", help='JSON: names of the units, like [["layer3.0", "layer3.1"]]')
    adapt.add_argument("--size", type=int, help="side of the images in pixels (default: the network's)")
    adapt.add_argument("--views", type=int, default=4000, help="random views to learn from (%(default)s)")
    adapt.add_argument("--batch-size", type=int, default=16, help="views in a step (%(default)s)")
    adapt.add_argument("--lr", type=float, default=0.02, help="learning rate of the heads (%(default)s)")
    adapt.add_argument("--seed", type=int, default=0)
    adapt.add_argument("--device", help="(default: cuda if there is one, else cpu)")
    adapt.add_argument("--quiet", action="store_true", help="no progress bar")
    adapt.set_defaults(run=run_adapt)


def _add_export(verbs: Any) -> None:
    from .exporting.command import add_options

    leave = verbs.add_parser(
        "export",
        help="a file for other runtimes: ONNX, torch.export",
        description="Write a network as a file that runs without this library, compared with the definition first: an "
        "ONNX graph that computes at active positions only, or a program for torch.export.load. Without --size the "
        "images' size is free.",
    )
    _add_network(leave)
    add_options(leave)
    leave.set_defaults(run=run_export)


def _add_import_tf(verbs: Any) -> None:
    import_tf = verbs.add_parser(
        "import-tf",
        help="import the authors' TensorFlow checkpoints",
        description="Read a checkpoint of the authors' code and write it as config.json and model.safetensors.",
    )
    import_tf.add_argument("checkpoint", metavar="CHECKPOINT", help="prefix (model.ckpt-123) or folder")
    import_tf.add_argument("--out", metavar="DIR", required=True, help="folder to write")
    import_tf.set_defaults(run=run_import_tf)


def _add_serve(verbs: Any) -> None:
    serve = verbs.add_parser(
        "serve",
        help="a page in the browser: drop a photograph, see where the work goes",
        description="Serve a page on this machine: class, ponder map, FLOPs share and time of photographs, a budget to "
        "turn, two networks side by side, and a table of many files. Nothing leaves this machine.",
    )
    serve.add_argument(
        "--model",
        action="append",
        default=[],
        help="folder, hub id, or packaged network, detector or segmenter; again for more (default: all packaged ones)",
    )
    serve.add_argument("--examples", metavar="DIR", help="folder of photographs to choose from (default: some at hand)")
    serve.add_argument("--host", default="127.0.0.1", help="address; the default is reached from this machine alone")
    serve.add_argument("--port", type=int, help="default: the first free one from 7860")
    serve.set_defaults(run=run_serve)


def _add_command(verbs: Any, verb: str, module: str, summary: str) -> None:
    """A verb whose module describes it."""
    command = import_module(f".{module}", __package__)
    parser = verbs.add_parser(verb, help=summary, description=" ".join((command.__doc__ or "").split()))
    command.add_options(parser)
    parser.set_defaults(run=command.run)


def run_train(options: argparse.Namespace, rest: list[str]) -> None:
    """`sact train`."""
    require("pydantic", "tasks")
    require("yaml", "tasks")
    from .recipe import load_recipe, parse_overrides

    path, overrides = _split(rest)
    fields = parse_overrides(overrides)
    if path is None:
        raise InputError(
            "no RECIPE is given; name a YAML file like recipes/scenes_sact.yaml "
            "(an option without = takes the next argument as its value)"
        )
    recipe = load_recipe(path, **fields)
    require("lightning", "tasks")
    from .results_text import describe_results
    from .tasks.training import MODEL_FOLDER, train

    out = Path(options.out or Path("runs") / Path(path).stem)
    results = train(recipe, out, options.resume, options.quiet)
    print(describe_results(results))
    print(f"the network is in {out / MODEL_FOLDER}")


def run_eval(options: argparse.Namespace) -> None:
    """`sact eval`."""
    require("lightning", "tasks")
    from .checkpoints import from_pretrained, read_metadata
    from .compiled import compile
    from .files import make_folder, write_json
    from .results_text import describe_results
    from .tasks.evaluation import evaluate, held_out_data

    if options.batch_size is not None and options.batch_size < 1:
        raise InputError(f"--batch-size is {options.batch_size}, but it must be at least 1")
    if options.json:
        make_folder(Path(options.json).parent)
    model = from_pretrained(options.model)
    chosen = {name: getattr(options, name) for name in ("data", "data_dir", "split", "size", "length")}
    dataset = held_out_data(model, read_metadata(options.model).get("recipe", {}), **chosen)
    results = evaluate(compile(model, options.engine), dataset, batch_size=options.batch_size, quiet=options.quiet)
    print(describe_results(results))
    write_json(Path(options.json), results)
    print(f"the results are in {options.json}")


def run_predict(options: argparse.Namespace) -> None:
    """`sact predict`."""
    from .checkpoints import pretrained_network
    from .compiled import compile
    from .files import make_folder, write_json
    from .predict import (
        check_outputs,
        find_images,
        predict,
        unique_names,
        write_arrays,
        write_pictures,
        write_sheet,
    )

    paths = find_images(options.images)
    network = pretrained_network(options.model)
    if options.size is not None and network.preprocessing is not None:
        network.preprocessing["size"] = options.size
    if options.budget is not None:
        network.budget = options.budget
    if options.cap is not None:
        network.cap = options.cap
    model = compile(network, options.engine)
    out = Path(options.out)
    names = unique_names(paths)
    check_outputs(paths, names, out)
    make_folder(out)
    predictions: list[Prediction] = []
    records = []
    try:
        for path, name in zip(paths, names, strict=True):
            prediction = predict(model, path, keep_distribution=options.npz)
            if not predictions:  # engines prepare themselves at the first image of a size
                prediction = predict(model, path, keep_distribution=options.npz)
            share = f"{prediction.share:.1%} of the plain network's FLOPs"
            took = f"{1e3 * prediction.seconds:.1f} ms"
            print(f"{path}: {prediction.name} ({prediction.score:.1%}), {share}, {took}")
            write_pictures(prediction, name, out)
            if options.npz:
                write_arrays(prediction, out / f"{name}.npz")
            records.append({"image": str(path)} | prediction.summary())
            predictions.append(prediction)
    finally:  # an image that cannot be read ends the run, but what is done is kept
        if predictions:
            write_sheet(predictions, out / "contact_sheet.png")
            write_json(out / "predictions.json", {"model": options.model, "predictions": records})
    print(f"pictures and predictions.json are in {out}")


def run_export(options: argparse.Namespace) -> None:
    """`sact export`."""
    from .exporting.command import run

    run(options, lambda options: _named_or_saved(options, device="cpu"))


def run_flops(options: argparse.Namespace) -> None:
    """`sact flops`."""
    from .flops_report import count

    network = _named_or_saved(options)
    customary = 32 if network.config.family == "cifar_resnet" else 224
    side = (network.preprocessing or {}).get("size", customary)
    size = options.size or (side, side)
    report = count(network, size)
    if options.json:
        print(json.dumps(report, indent=2))
        return
    height, width = size
    print(f"{options.model}, halting {network.config.halting}, {height}x{width}")
    print(f"{'':14}{'plain':>16}{'all units run':>18}{'fewest units':>18}")
    rows = [("stem and head", [report["fixed"]] * 3)]
    rows += [(f"block {n}", [b["plain"], b["most"], b["fewest"]]) for n, b in enumerate(report["blocks"], start=1)]
    rows += [("network", [report["plain"], report["most"], report["fewest"]])]
    for name, values in rows:
        print(f"{name:14}{values[0]:>16,}{values[1]:>18,}{values[2]:>18,}")


def run_bench(options: argparse.Namespace) -> int:
    """`sact bench`."""
    from .bench.command import run

    saved = _is_saved(options.model)
    if not saved and options.halting is None:
        options.halting = "sact"
    return run(_named_or_saved(options, "cpu").eval(), options, saved)


def run_adapt(options: argparse.Namespace) -> None:
    """`sact adapt`."""
    from .adapt_command import run

    run(options)


def run_import_tf(options: argparse.Namespace) -> None:
    """`sact import-tf`."""
    from .checkpoints import save_pretrained
    from .tf_checkpoints import import_tf_checkpoint

    model = import_tf_checkpoint(options.checkpoint)
    save_pretrained(model, options.out)
    config = model.config
    print(
        f"{config.family}, units {list(config.units)}, base channels {config.base_channels}, {config.num_classes} "
        f"classes, halting {config.halting}: written to {options.out}"
    )


def run_serve(options: argparse.Namespace) -> None:
    """`sact serve`."""
    from .app import serve

    serve(options.model, options.host, options.port, options.examples)


def _recipe_fields() -> str:
    try:
        require("pydantic", "tasks")
        require("yaml", "tasks")
    except MissingExtraError as error:
        return f"\nthe fields of a recipe cannot be listed: {error}\n"
    from .recipe_help import describe_fields

    return f"\n{describe_fields()}"


def _split(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The recipe among overrides like --tau 0.01 and --tau=0.01, and all but the recipe."""
    at = 0
    while at < len(arguments) and arguments[at].startswith("--"):
        at += 1 if "=" in arguments[at] else 2
    return (arguments[at] if at < len(arguments) else None), arguments[:at] + arguments[at + 1 :]


def _is_saved(name: str) -> bool:
    from .checkpoints import list_pretrained

    return "/" in name or Path(name).is_dir() or name in list_pretrained()


def _named_or_saved(options: argparse.Namespace, device: str = "meta") -> AdaptiveNetwork:
    """The network that the options name; one made anew has weights on `device`, the same ones each time."""
    import torch

    from .checkpoints import pretrained_network
    from .models import create_model

    shape = {name: getattr(options, name) for name in ("units", "base_channels", "num_classes", "in_channels")}
    name = options.model
    if not _is_saved(name):
        torch.manual_seed(0)
        with torch.device(device):
            given = {field: value for field, value in shape.items() if value is not None}
            return create_model(name, options.halting or "none", **given)
    for field, value in shape.items():
        if value is not None:
            raise InputError(f"--{field.replace('_', '-')} is {value}, but {name} is a saved network; leave it out")
    return pretrained_network(name, halting=options.halting)


def _units(text: str) -> list[int]:
    try:
        return [int(part) for part in text.strip("[]").split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is not a list of unit counts like 3,4,6,3') from None


def _shares(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is not a list of shares like 0.3,0.5') from None


def _size(text: str) -> tuple[int, int]:
    try:
        sides = [int(part) for part in text.lower().split("x")]
        height, width = sides * 2 if len(sides) == 1 else sides
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is not a size like 224 or 480x640') from None
    if min(height, width) < MIN_SIZE:
        raise argparse.ArgumentTypeError(f'"{text}" is too small: both sides must be at least {MIN_SIZE}')
    return height, width
