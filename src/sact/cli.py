"""The command line: the same verbs and argument names as the library."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .errors import SactError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="sact")
    commands = parser.add_subparsers(required=True)
    train = commands.add_parser("train")
    train.add_argument("recipe")
    train.add_argument("--out")
    train.add_argument("--resume", action="store_true")
    train.add_argument("--quiet", action="store_true")
    train.set_defaults(run=run_train)
    options, rest = parser.parse_known_args(arguments)
    try:
        return options.run(options, rest)
    except SactError as error:
        print(f"sact: {error}", file=sys.stderr)
        return 2


def run_train(options: argparse.Namespace, rest: list[str]) -> int:
    from pathlib import Path

    from .recipe import load_recipe, parse_overrides
    from .tasks.training import train

    recipe = load_recipe(options.recipe, **parse_overrides(rest))
    train(recipe, options.out or f"runs/{Path(options.recipe).stem}", options.resume, options.quiet)
    return 0
