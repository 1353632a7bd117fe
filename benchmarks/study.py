"""The study on scenes: plain, ACT and SACT networks, and plain networks of the same FLOPs.

    python benchmarks/study.py [--folder runs/study] [--jobs 2]

Every model is trained in two phases with the same number of images: a plain network first, then one fine-tuning phase
in which it stays plain, becomes ACT or becomes SACT. A model that is finished is not trained again and one that was
interrupted goes on from its last epoch, so the same command re-runs and resumes. `benchmarks/study_report.py` measures
the trained networks and writes the table and the plots.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FULL = (6, 8, 4)
DEPTHS = [FULL, (4, 5, 3), (2, 3, 2)]
QUALITIES = ("top1", "map", "miou")
"""What results are told by, the first of these that they have."""
TAUS = {"sact": [0.01, 0.02, 0.04, 0.08], "act": [0.01, 0.02, 0.04]}


def plain_name(units: tuple[int, ...]) -> str:
    """Folder of a plain network's second phase."""
    return f"plain-{'-'.join(map(str, units))}"


def adaptive_name(halting: str, tau: float) -> str:
    """Folder of an adaptive network."""
    return f"{halting}-{tau:g}"


def same_flops_units(folder: Path, name: str) -> tuple[int, ...]:
    """The plain network that an adaptive one is held against: its mean units per block on validation, rounded."""
    results = json.loads((folder / name / "results.json").read_text())
    return tuple(max(1, round(block["units"]["mean"])) for block in results["blocks"])


class Study:
    """Trains every model once, in dependency order, a few at a time."""

    def __init__(self, folder: Path, jobs: int, overrides: list[str]) -> None:
        self.folder = folder
        self.overrides = overrides
        self.threads = max(1, (os.cpu_count() or 1) // jobs)
        self.pool = ThreadPoolExecutor(jobs)
        self.started: dict[str, Future[None]] = {}

    def start(self, name: str, recipe: str, *fields: str, after: str | None = None) -> str:
        """Queue a model (once); it trains when `after` is done. Jobs start in the order of these calls."""
        if name not in self.started:
            waits = self.started[after] if after else None
            self.started[name] = self.pool.submit(self._train, name, recipe, fields, waits)
        return name

    def first_phase(self, units: tuple[int, ...]) -> str:
        """Queue a plain network's training from scratch; its name."""
        return self.start(f"{plain_name(units)}/first", "scenes_plain", f"--units={list(units)}")

    def plain(self, networks: Sequence[tuple[int, ...]]) -> None:
        """Queue plain networks: all first phases, then all second ones, so that no job waits for another."""
        for units in networks:
            self.first_phase(units)
        for units in networks:
            first = self.first_phase(units)
            fields = (f"--units={list(units)}", "--halting=none", "--tau=0", f"--init={self.model(first)}")
            self.start(plain_name(units), "scenes_sact", *fields, after=first)

    def model(self, name: str) -> Path:
        """Where a finished model lies."""
        return self.folder / name / "model"

    def wait(self) -> None:
        """Until everything queued is done; the first failure is raised."""
        for future in list(self.started.values()):
            future.result()

    def _train(self, name: str, recipe: str, fields: tuple[str, ...], after: Future[None] | None) -> None:
        if after is not None:
            after.result()
        out = self.folder / name
        if (out / "results.json").is_file():
            return
        print(f"training {name}", flush=True)
        command = [sys.executable, "-m", "sact", "train", str(ROOT / "recipes" / f"{recipe}.yaml"), f"--out={out}"]
        out.mkdir(parents=True, exist_ok=True)
        with open(out / "log.txt", "a") as log:
            subprocess.run(
                [*command, "--resume", "--quiet", *fields, *self.overrides],
                check=True,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": str(self.threads)},
            )
        if not (out / "results.json").is_file():  # a terminated run ends without an error
            raise RuntimeError(f"{name} was stopped before it was finished; run the same command again")
        results = json.loads((out / "results.json").read_text())
        quality = next(key for key in QUALITIES if key in results)
        flops = results["flops"]["mean"] / 1e6
        print(f"{name}: {quality} {results[quality]:.4f} on validation, FLOPs {flops:.1f} M", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train every model of the study on scenes.")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "study")
    parser.add_argument("--jobs", type=int, default=max(1, min(2, os.cpu_count() or 1)), help="models at a time")
    options, overrides = parser.parse_known_args()
    study = Study(options.folder, options.jobs, overrides)
    adaptive = [(halting, tau) for halting in TAUS for tau in TAUS[halting]]
    study.plain(DEPTHS)
    full = study.first_phase(FULL)
    for halting, tau in adaptive:
        init = f"--init={study.model(full)}"
        study.start(adaptive_name(halting, tau), f"scenes_{halting}", f"--tau={tau:g}", init, after=full)
    study.wait()
    study.plain([same_flops_units(options.folder, adaptive_name(halting, tau)) for halting, tau in adaptive])
    study.wait()


if __name__ == "__main__":
    main()
