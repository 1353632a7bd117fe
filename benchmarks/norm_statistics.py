"""Which positions norms take their statistics over in training: what that does to accuracy, on scenes.

    python benchmarks/norm_statistics.py [--seeds 3] [--folder runs/study] [--jobs 2]

Fine-tunes recipes/scenes_sact.yaml from the study's plain network once per seed and choice, as `study.py` does (a run
that is finished is not repeated), and writes norm_statistics.md. About 10 minutes per run and core, and 20 more for the
plain network where it is missing.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from study import FULL, ROOT, Study

from sact.bench.report import conditions
from sact.engines import NORM_STATISTICS
from sact.files import write_text

TAU = 0.02
OUT = Path(__file__).resolve().with_suffix(".md")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the two choices of norm statistics on scenes.")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "study")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="models at a time")
    options = parser.parse_args()
    study = Study(options.folder, options.jobs, [])
    first = study.first_phase(FULL)
    names = {(choice, seed): f"norms-{choice}-{seed}" for seed in range(options.seeds) for choice in NORM_STATISTICS}
    for (choice, seed), name in names.items():
        fields = (f"--tau={TAU}", f"--init={study.model(first)}", f"--norm_statistics={choice}", f"--seed={seed}")
        study.start(name, "scenes_sact", *fields, after=first)
    study.wait()
    results = {key: json.loads((options.folder / name / "results.json").read_text()) for key, name in names.items()}
    write_text(OUT, report(results, options.seeds))
    print(OUT.read_text())


def report(results: dict[tuple[str, int], dict[str, Any]], seeds: int) -> str:
    """The table, a row per choice."""
    lines = ["| statistics over | top-1, % | share of FLOPs, % | by seed: top-1 / share, % |", "|---|---|---|---|"]
    for choice in NORM_STATISTICS:
        mine = [results[choice, seed] for seed in range(seeds)]
        top1, share = ([100 * one[name] for one in mine] for name in ("top1", "share"))
        single = ", ".join(f"{a:.2f} / {b:.1f}" for a, b in zip(top1, share, strict=True))
        lines.append(f"| {choice} positions | {_mean(top1)} | {_mean(share)} | {single} |")
    gaps = [100 * (results["active", seed]["top1"] - results["all", seed]["top1"]) for seed in range(seeds)]
    now = conditions(1)
    return "\n".join(
        [
            "# Norm statistics over all or over active positions",
            "",
            f"SACT, tau {TAU}, fine-tuned from one plain network (`recipes/scenes_sact.yaml`); top-1 on the 2000 "
            "validation scenes of each seed, evaluated with running statistics by the same definition.",
            "",
            *lines,
            "",
            f"Active minus all, paired by seed: {_mean(gaps)} points of top-1 (mean, and standard deviation of a run).",
            "",
            f"`python benchmarks/norm_statistics.py --seeds {seeds}`, {now['date']}, {now['processor']}, "
            f"{now['cores']} cores, PyTorch {now['versions']['torch']}.",
            "",
        ]
    )


def _mean(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.2f} ± {spread:.2f}"


if __name__ == "__main__":
    main()
