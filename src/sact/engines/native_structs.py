"""The C structures of `native/native.h`, for ctypes."""

from __future__ import annotations

from ctypes import POINTER, Structure, c_float, c_int32, c_void_p


class Activation(Structure):
    _fields_ = [("kind", c_int32), ("slope", c_float), ("cap", c_float)]


class Conv(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("inputs", "outputs", "kernel", "stride", "pad", "same", "groups")),
        ("weight", c_void_p),
        ("bias", c_void_p),
    ]

    def result(self, size: int) -> int:
        """The output's height or width."""
        if self.same:
            return -(-size // int(self.stride))
        return (size + 2 * int(self.pad) - int(self.kernel)) // int(self.stride) + 1


class Pointwise(Structure):
    _fields_ = [("scale", c_void_p), ("shift", c_void_p), ("eps", c_float), ("activation", Activation)]


class StageStruct(Structure):
    _fields_ = [("before", Pointwise), ("conv", Conv)]


class ScoreStruct(Structure):
    _fields_ = [
        ("local_before", Pointwise),
        ("global_before", Pointwise),
        ("local_weight", c_void_p),
        ("global_weight", c_void_p),
        ("bias", c_float),
    ]


class UnitStruct(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("channels", "n_stages", "shortcut", "preactivated", "stride", "before")),
        ("stages", POINTER(StageStruct)),
        ("projection", POINTER(Conv)),
        ("after", Pointwise),
        ("score", POINTER(ScoreStruct)),
    ]


class BlockStruct(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("n_units", "halting", "halted")),
        ("threshold", c_float),
        ("units", POINTER(UnitStruct)),
    ]


class NetworkStruct(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("n_blocks", "stem_pool", "pool_first", "classes")),
        ("stem", Conv),
        ("after_stem", Activation),
        ("blocks", POINTER(BlockStruct)),
        ("before_classifier", Pointwise),
        ("classifier", Conv),
    ]


class BlockResult(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("units", "cost", "distribution", "features", "forced")),
        ("shift", c_float),
    ]
