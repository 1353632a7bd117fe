"""Results of training and evaluation as text."""

from __future__ import annotations

from typing import Any


def describe_results(results: dict[str, Any]) -> str:
    """What a task measures, FLOPs, and the blocks' units as a small table."""
    lines = [_headline(results), _flops(results)]
    if results.get("ponder_inside") is not None:
        lines.append(
            f"ponder cost {results['ponder_inside']:.2f} on objects, {results['ponder_outside']:.2f} elsewhere"
        )
    lines.append(
        f"{'block':>5}{'units mean':>12}{'std':>7}{'max':>5}{'of':>4}{'dead':>6}{'ponder cost':>13}{'FLOPs':>12}"
    )
    for number, block in enumerate(results["blocks"], start=1):
        units, cost = block["units"], block["cost"]
        shown = f"{cost['mean']:.2f}" if cost else "-"
        lines.append(
            f"{number:>5}{units['mean']:>12.2f}{units['std']:>7.2f}{units['max']:>5}{units['unit_count']:>4}"
            f"{units['dead_units']:>6}{shown:>13}{block['flops']['mean']:>12.4g}"
        )
    return "\n".join(lines)


def _headline(results: dict[str, Any]) -> str:
    if "top1" in results:
        return f"top-1 {results['top1']:.2%}   top-5 {results['top5']:.2%}"
    if "miou" in results:
        return f"mean IoU {_percent(results['miou'])}   pixels {_percent(results['accuracy'])}"
    names = {"mAP": "map", "at 0.5": "map50", "at 0.75": "map75"}
    names |= {f"{size} objects": f"map_{size}" for size in ("small", "medium", "large")}
    return "   ".join(f"{name} {_percent(results[key])}" for name, key in names.items())


def _flops(results: dict[str, Any]) -> str:
    flops, share = results["flops"], f"{results['share']:.1%}"
    told = f"FLOPs {flops['mean']:.4g} +- {flops['std']:.2g} per image, "
    if "share_std" not in results:
        return f"{told}{share} of the plain network"
    return f"{told}{share} +- {results['share_std']:.1%} of the plain extractor"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
