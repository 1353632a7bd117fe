"""Find the class of every pixel of pictures."""

from __future__ import annotations

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""


def run(options: argparse.Namespace) -> None:
    """Run the verb."""
