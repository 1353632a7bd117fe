"""Benchmarks: engines beside the plain network in other runtimes, outputs compared before anything is timed."""

from .masks import MASKS, Forcing, force_units
from .measure import bench
from .peers import PEERS
from .report import describe, table

__all__ = ["MASKS", "PEERS", "Forcing", "bench", "describe", "force_units", "table"]
