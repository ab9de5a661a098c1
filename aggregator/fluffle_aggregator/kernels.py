"""What is done with each element of an update, in machine code: one pass over memory each. Pure.

The codecs' own `add_to` and `largest_magnitude` compute the same in numpy, which takes two to four passes.
They are the reference (tests/unit/test_kernels.py): product and sum are rounded one after the other, never
fused, so that the bits are the same. LLVM makes vector instructions of the loops below, for the processor at
hand and in some hundredths of a second. docs/decisions/0013 says why.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import c_float, c_size_t, c_uint32, c_void_p
from dataclasses import dataclass, field
from functools import cache
from typing import Final

import numpy as np

from fluffle.codecs.compressed import require_same_size
from fluffle.codecs.floats import Float32Vector
from fluffle.codecs.int8 import GROUP, Int8Vector
from fluffle.compression import CompressedVector
from fluffle.model import Vector

# total[i] += product
ADD_PRODUCT: Final = """\
  %sum_at = getelementptr float, ptr %total, i64 %i
  %sum = load float, ptr %sum_at, align 4
  %more = fadd float %sum, %product
  store float %more, ptr %sum_at, align 4"""
LOOPS: Final = f"""
; total[i] += values[i] * factor
define void @add_float32(ptr noalias %total, ptr noalias %values, float %factor, i64 %size) {{
entry:
  %any = icmp ne i64 %size, 0
  br i1 %any, label %element, label %done
element:
  %i = phi i64 [ 0, %entry ], [ %next, %element ]
  %value_at = getelementptr float, ptr %values, i64 %i
  %value = load float, ptr %value_at, align 1
  %product = fmul float %value, %factor
{ADD_PRODUCT}
  %next = add nuw i64 %i, 1
  %goes_on = icmp ult i64 %next, %size
  br i1 %goes_on, label %element, label %done
done:
  ret void
}}

; max(abs(values[i])), as the bits of a float32: without their sign they are in order, and NaN above all
define i32 @largest_float32(ptr noalias %values, i64 %size) {{
entry:
  %any = icmp ne i64 %size, 0
  br i1 %any, label %element, label %done
element:
  %i = phi i64 [ 0, %entry ], [ %next, %element ]
  %largest = phi i32 [ 0, %entry ], [ %larger, %element ]
  %value_at = getelementptr i32, ptr %values, i64 %i
  %value = load i32, ptr %value_at, align 1
  %magnitude = and i32 %value, {0x7FFFFFFF}
  %larger = call i32 @llvm.umax.i32(i32 %largest, i32 %magnitude)
  %next = add nuw i64 %i, 1
  %goes_on = icmp ult i64 %next, %size
  br i1 %goes_on, label %element, label %done
done:
  %found = phi i32 [ 0, %entry ], [ %larger, %element ]
  ret i32 %found
}}
declare i32 @llvm.umax.i32(i32, i32)

; total[i] += levels[i] * scales[i // {GROUP}] * factor
define void @add_int8(
  ptr noalias %total, ptr noalias %levels, ptr noalias %scales, float %factor, i64 %size
) {{
entry:
  %any = icmp ne i64 %size, 0
  br i1 %any, label %group, label %done
group:
  %g = phi i64 [ 0, %entry ], [ %next_g, %group_done ]
  %scale_at = getelementptr float, ptr %scales, i64 %g
  %scale = load float, ptr %scale_at, align 1
  %start = mul nuw i64 %g, {GROUP}
  %whole = add nuw i64 %start, {GROUP}
  %is_whole = icmp ule i64 %whole, %size
  %end = select i1 %is_whole, i64 %whole, i64 %size
  br label %element
element:
  %i = phi i64 [ %start, %group ], [ %next, %element ]
  %level_at = getelementptr i8, ptr %levels, i64 %i
  %level = load i8, ptr %level_at, align 1
  %rounded = sitofp i8 %level to float
  %value = fmul float %rounded, %scale
  %product = fmul float %value, %factor
{ADD_PRODUCT}
  %next = add nuw i64 %i, 1
  %goes_on = icmp ult i64 %next, %end
  br i1 %goes_on, label %element, label %group_done
group_done:
  %next_g = add nuw i64 %g, 1
  %is_last = icmp eq i64 %end, %size
  br i1 %is_last, label %done, label %group
done:
  ret void
}}
"""
SPEED_LEVEL: Final = 3


def add_weighted(total: Vector, vector: CompressedVector, weight: float) -> None:
    """Add weight * vector to `total` in place, by machine code where there is some for its codec.

    The weight is rounded once, to float32. Raises ValueError when the sizes differ.
    """
    match vector:
        case Float32Vector():
            values = vector.values
            require_same_size(total, values.size)
            machine_code().add_float32(_address(total), values.ctypes.data, weight, total.size)
        case Int8Vector():
            scales, levels = vector.parts
            # There are as many scales as `size` asks for, and the rest are levels.
            require_same_size(total, vector.size)
            require_same_size(total, levels.size)
            addresses = _address(total), levels.ctypes.data, scales.ctypes.data
            machine_code().add_int8(*addresses, weight, total.size)
        case _:
            vector.add_to(total, weight)


def largest_magnitude(vector: CompressedVector) -> float:
    """Return a magnitude that no element exceeds; NaN or infinity when an element is not finite."""
    if isinstance(vector, Float32Vector):
        values = vector.values
        bits = machine_code().largest_float32(values.ctypes.data, values.size)
        return float(np.uint32(bits).view(np.float32))
    return vector.largest_magnitude()


@dataclass(frozen=True, slots=True)
class MachineCode:
    """The loops as functions of addresses; they are there as long as `engine` is."""

    largest_float32: Callable[[int, int], int]
    add_float32: Callable[[int, int, float, int], None]
    add_int8: Callable[[int, int, int, float, int], None]
    engine: object = field(repr=False)


@cache
def machine_code() -> MachineCode:
    """Compile the loops, once in a process."""
    from llvmlite import binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(LOOPS)
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=SPEED_LEVEL
    )
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(SPEED_LEVEL))
    builder.getModulePassManager().run(module, builder)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    largest_float32 = ctypes.CFUNCTYPE(c_uint32, c_void_p, c_size_t)
    add_float32 = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_float, c_size_t)
    add_int8 = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_void_p, c_float, c_size_t)
    return MachineCode(
        largest_float32(engine.get_function_address("largest_float32")),
        add_float32(engine.get_function_address("add_float32")),
        add_int8(engine.get_function_address("add_int8")),
        engine,
    )


def _address(total: Vector) -> int:
    """Return where a vector lies that may be written to from its first byte to its last."""
    if not (total.flags.carray and total.dtype.str == "<f4"):
        raise TypeError("only a float32 vector of its own, in one piece, can be added to")
    return total.ctypes.data
