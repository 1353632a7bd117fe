"""`import sact` stays light."""

from __future__ import annotations

import subprocess
import sys

import sact

EXTRAS = {
    *("lightning", "pytorch_lightning", "torchvision", "timm", "torchmetrics", "tensorboard", "tensorflow", "pydantic"),
    *("matplotlib", "skimage", "scipy", "pandas", "yaml", "rich", "ray", "fastapi", "gradio", "onnx", "onnxruntime"),
    *("jinja2", "pycocotools", "faster_coco_eval"),
}


def test_import_pulls_in_no_extra() -> None:
    program = (
        "import torch, sys, time; before = set(sys.modules); start = time.perf_counter(); import sact;"
        "print(time.perf_counter() - start);"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, new = result.stdout.splitlines()
    print(f"import sact adds {float(seconds):.3f} s to import torch")
    new_modules = set(new.split())
    assert "sact" in new_modules
    assert not new_modules & EXTRAS


def test_public_names_exist_once() -> None:
    assert len(sact.__all__) == len(set(sact.__all__))
    assert all(hasattr(sact, name) for name in sact.__all__)
