"""`benchmarks/study.py`: what is trained, in which order, and that nothing is trained twice."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PATH = Path(__file__).parents[1] / "benchmarks" / "study.py"


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("study", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_results(folder: Path, means: list[float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    blocks = [{"units": {"mean": mean}} for mean in means]
    (folder / "results.json").write_text(json.dumps({"top1": 0.5, "flops": {"mean": 1e6}, "blocks": blocks}))


class Commands:
    """Stands for `subprocess.run`: keeps the commands, and writes the results that training would."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lines: list[list[str]] = []
        self.outs: list[Path] = []
        self.missing: list[str] = []
        self.fails = ""

    def __call__(self, command: list[str], **options: Any) -> None:
        out = Path(next(part for part in command if part.startswith("--out=")).removeprefix("--out="))
        init = [part.removeprefix("--init=") for part in command if part.startswith("--init=")]
        with self.lock:
            self.lines.append(command)
            self.outs.append(out)
            self.missing += [path for path in init if not (Path(path).parent / "results.json").is_file()]
        if self.fails and out.name == self.fails:
            raise subprocess.CalledProcessError(2, command)
        spread = {"0.01": 3.4, "0.02": 2.6, "0.04": 1.2}.get(out.name.rpartition("-")[2], 0.3)
        write_results(out, [spread, spread, 1.0])

    def names(self, root: Path) -> list[str]:
        return [str(out.relative_to(root)) for out in self.outs]


@pytest.fixture
def commands(study: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Commands:
    commands = Commands()
    monkeypatch.setattr(study.subprocess, "run", commands)
    return commands


def run_main(study: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """`study.main` in a thread, so that a deadlock is a failure and not an endless test."""
    monkeypatch.setattr(sys, "argv", ["study.py", *arguments])
    errors: list[BaseException] = []

    def run() -> None:
        try:
            study.main()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "the study waits for itself"
    if errors:
        raise errors[0]


@pytest.mark.parametrize(
    ("means", "units"), [([2.6, 1.4, 3.0], (3, 1, 3)), ([0.2, 0.6, 7.49], (1, 1, 7)), ([1, 1, 1], (1, 1, 1))]
)
def test_same_flops_units(study: ModuleType, tmp_path: Path, means: list[float], units: tuple[int, ...]) -> None:
    write_results(tmp_path / "sact-0.01", means)
    assert study.same_flops_units(tmp_path, "sact-0.01") == units


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_everything_is_trained_once_after_what_it_needs(
    study: ModuleType, commands: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, jobs: int
) -> None:
    run_main(study, monkeypatch, f"--folder={tmp_path}", f"--jobs={jobs}", "--train_length=64")
    names = commands.names(tmp_path)
    assert len(names) == len(set(names))
    assert commands.missing == []
    adaptive = {study.adaptive_name(halting, tau) for halting, taus in study.TAUS.items() for tau in taus}
    same = {study.plain_name(study.same_flops_units(tmp_path, name)) for name in adaptive}
    assert {"plain-3-3-1", "plain-1-1-1"} <= same
    depths = {study.plain_name(units) for units in study.DEPTHS}
    assert len(depths) >= 3
    assert {len(study.TAUS["act"]), len(study.TAUS["sact"])} == {3, 4}
    assert set(names) == adaptive | same | depths | {f"{name}/first" for name in same | depths}
    full = str(tmp_path / study.plain_name(study.FULL) / "first" / "model")
    for line, name in zip(commands.lines, names, strict=True):
        assert "--resume" in line
        assert "--train_length=64" in line
        assert (f"--init={full}" in line) == (name in adaptive or name == study.plain_name(study.FULL))


def test_what_is_finished_is_not_trained_again(
    study: ModuleType, commands: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_main(study, monkeypatch, f"--folder={tmp_path}", "--jobs=2")
    everything = set(commands.names(tmp_path))
    (tmp_path / "sact-0.02" / "results.json").unlink()
    (tmp_path / "plain-3-3-1" / "results.json").unlink()
    commands.outs.clear()
    run_main(study, monkeypatch, f"--folder={tmp_path}", "--jobs=2")
    assert sorted(commands.names(tmp_path)) == ["plain-3-3-1", "sact-0.02"]
    assert everything > {"plain-3-3-1", "sact-0.02"}


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failure_is_raised_and_what_needs_it_is_not_trained(
    study: ModuleType, commands: Commands, tmp_path: Path, jobs: int
) -> None:
    commands.fails = "first"
    run = study.Study(tmp_path, jobs, [])
    run.plain([(2, 2), (3, 3)])
    with pytest.raises(subprocess.CalledProcessError):
        run.wait()
    run.pool.shutdown()
    assert sorted(commands.names(tmp_path)) == ["plain-2-2/first", "plain-3-3/first"]


def test_a_model_is_trained_by_the_command_line(study: ModuleType, commands: Commands, tmp_path: Path) -> None:
    run = study.Study(tmp_path, 1, ["--val_length=8"])
    run.first_phase((2, 3))
    run.wait()
    (line,) = commands.lines
    recipe = PATH.parents[1] / "recipes" / "scenes_plain.yaml"
    out = tmp_path / "plain-2-3" / "first"
    assert line[:5] == [sys.executable, "-m", "sact", "train", str(recipe)]
    assert line[5:] == [f"--out={out}", "--resume", "--quiet", "--units=[2, 3]", "--val_length=8"]
    assert recipe.is_file()
