"""Compile every kernel that a network and its training launch, for a Hopper GPU, without one.

The engine never looks at a value, so it can run with launches that only compile. A line per compiled kernel says its
name, dtype, the matrix products in its code, whether it loops over them, and the asynchronous copies. Run by
`test_triton.py` in a process of its own, where kernels are not interpreted.
"""

from __future__ import annotations

from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_kernel

import sact
from sact.engines import kernels, launch, triton

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int64: "*i64", torch.uint8: "*u8"}
done = set()


class Compiling:
    """Stands for a kernel, and compiles where that would be launched."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: Any) -> Any:
        return self.compile

    def compile(self, *args: Any, **keywords: Any) -> None:
        options = {name: keywords.pop(name) for name in ("num_warps", "num_stages") if name in keywords}
        given = dict(zip(self.kernel.arg_names, args, strict=False)) | keywords
        signature, constants, attributes = {}, {}, {}
        for index, parameter in enumerate(self.kernel.params):
            value = given[parameter.name]
            if parameter.is_constexpr or value is None:
                signature[parameter.name] = "constexpr"
                constants[parameter.name] = value
            elif isinstance(value, torch.Tensor):
                signature[parameter.name] = TYPES[value.dtype]
                attributes[(index,)] = [["tt.divisibility", 16]]
            else:
                signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        key = self.kernel.__name__, str(signature), str(constants), str(options)
        if key in done:
            return
        done.add(key)
        source = ASTSource(fn=self.kernel, signature=signature, constexprs=constants, attrs=attributes)
        code = compile_kernel(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
        dtype = str(next(value.dtype for value in args if isinstance(value, torch.Tensor))).removeprefix("torch.")
        products = code.count("wgmma.mma_async") + code.count("mma.sync")
        steps = constants.get("KERNEL", 3) ** 2 * (constants.get("C", 1) // constants.get("BLOCK_K", 64))
        print(self.kernel.__name__, dtype, products, "loop" if steps > 1 else "single", code.count("cp.async.c"))


for name in [name for name in dir(kernels) if name.endswith("_kernel")]:
    setattr(kernels, name, Compiling(getattr(kernels, name)))
launch._processors = lambda like: 16
triton.check_device = lambda: None
triton.fits = lambda *_: True
with torch.no_grad():
    for dtype in (torch.bfloat16, torch.float32):
        for dense in (False, True):
            triton.Plan.dense = lambda self, dense=dense: [dense] * self.units
            model = sact.create_model("resnet", halting="sact", units=[2, 2], base_channels=64).eval().to(dtype)
            images = torch.zeros(1, 3, 160, 160, dtype=dtype)
            sact.compile(model, "triton")(images, return_ponder=True, return_halting_distribution=True)
        values, rows = torch.zeros(500, 64, dtype=dtype), torch.zeros(400, 9, dtype=torch.int64)
        weight, norm = torch.zeros(64, 64, 3, 3, dtype=dtype), (torch.ones(64), torch.ones(64))
        launch.conv(values, rows, weight, None, *norm, 0.0)
        launch.conv_backward(torch.zeros(400, 64, dtype=dtype), values, rows, weight, *norm, 0.0, [True] * 4)
