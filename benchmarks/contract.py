"""How near the contraction generator comes to the processor's peak, on one thread.

    python benchmarks/contract.py
    python benchmarks/contract.py 2048x768x192 14x14

prints GFLOP/s, and the share of what a loop of independent multiply-adds reaches in the same run.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import llvmlite.binding as llvm
import numpy as np

from palto.compiler.explain import flops_peak
from palto.compiler.llvm import contract, tiling
from palto.compiler.llvm.builder import Function, Value
from palto.compiler.llvm.tiling import Axis, Contraction, Machine, Plan

engines: list[object] = []


def native(f: Function, arguments: list[type], show: bool) -> Callable[..., None]:
    """A function of the builder as machine code, which is printed if it is to be shown."""
    text = f.finish().replace("define internal", "define")
    module = llvm.parse_assembly("\n".join([*sorted(f.declarations), text]))
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2
    )
    module.triple, module.data_layout = target.triple, str(target.target_data)
    if show:
        print(target.emit_assembly(module))
    engine = llvm.create_mcjit_compiler(module, target)
    engine.finalize_object()
    engines.append(engine)
    prototype = ctypes.CFUNCTYPE(None, *arguments)
    return prototype(engine.get_function_address(f.function_name))


def best_seconds(functions: Sequence[Callable[[], None]], budget: float = 1.0) -> float:
    """The time of some functions one after the other, each one's shortest of several rounds.

    Other programs that interrupt a long function then lengthen one of its parts in one round only.
    """
    best, end = [math.inf] * len(functions), time.perf_counter() + budget
    while time.perf_counter() < end or math.inf in best:
        for number, function in enumerate(functions):
            start = time.perf_counter()
            function()
            best[number] = min(best[number], time.perf_counter() - start)
    return sum(best)


def compiled(plan: Plan, show: bool) -> Callable[..., None]:
    """Pointers of a, b, the result and the unfinished sums, then the units' bounds."""
    x = plan.contraction
    parameters = [("ptr", "a"), ("ptr", "b"), ("ptr", "c"), ("ptr", "p")]
    f = Function("contraction", [*parameters, ("i64", "first"), ("i64", "last")])
    a, b, c, p, first, last = f.parameters.values()
    lengths = [axis.length for axis in (*x.batch, *x.rows)]

    def finish(batch: list[Value], rows: list[Value], column: Value, sums: Value) -> None:
        place = f.constant(0, "i64")
        for length, index in zip(lengths, [*batch, *rows], strict=True):
            place = f.binary("add", f.binary("mul", place, f.constant(length, "i64")), index)
        place = f.binary("mul", place, f.constant(x.columns, "i64"))
        f.store(c, f.binary("add", place, column), sums)

    contract.emit(
        f, plan,
        lambda index, lanes=1: f.load(a, index, x.kind, lanes),
        lambda index, lanes: f.load(b, index, x.kind, lanes),
        p, first, last, finish, lambda index: f.prefetch(b, index, x.kind),
        prefetch_a=lambda index, level: f.prefetch(a, index, x.kind, level=level),
    )  # fmt: skip
    return native(f, [*[ctypes.c_void_p] * 4, ctypes.c_int64, ctypes.c_int64], show)


def matmul(m: int, n: int, k: int) -> Contraction:
    """The product of (m, k) and (k, n)."""
    return Contraction("float", (), (Axis(m, k),), n, (Axis(k, 1, n),))


def matmul_weights(k: int, n: int, m: int) -> Contraction:
    """The product of (m, k) transposed and (m, n), a layer's weight gradient."""
    return Contraction("float", (), (Axis(k, 1),), n, (Axis(m, k, n),), wide_a=True)


def matmul_turned(m: int, n: int, k: int) -> Contraction:
    """The product of (m, k) and (n, k) transposed, a layer's outputs from weights (n, k)."""
    return Contraction("float", (), (Axis(m, k),), n, (Axis(k, 1, 1),), column_b=k)


def convolution(
    images: int, size: int, channels: int, filters: int, kernel: int, stride: int = 1
) -> Contraction:
    """Channels last, from padded images; `size` is the output's."""
    width = (size - 1) * stride + kernel
    line = width * channels
    rows = (Axis(images, width * line), Axis(size, stride * line), Axis(size, stride * channels))
    inner = kernel * channels
    summed = (Axis(kernel, line, inner * filters), Axis(inner, 1, filters))
    return Contraction("float", (), rows, filters, summed)


def convolution_weights(
    images: int, size: int, channels: int, filters: int, kernel: int, stride: int = 1
) -> Contraction:
    """The gradient of the convolution's weights, from padded images and dense errors."""
    width = (size - 1) * stride + kernel
    line = width * channels
    summed = (
        Axis(images, width * line, size * size * filters),
        Axis(size, stride * line, size * filters),
        Axis(size, stride * channels, filters),
    )
    rows = (Axis(kernel, line), Axis(kernel * channels, 1))
    return Contraction("float", (), rows, filters, summed, wide_a=True)


CONVOLUTIONS = {
    "28x28 32->64 3x3, 16 images": (16, 28, 32, 64, 3),
    "14x14 64->128 3x3, 16 images": (16, 14, 64, 128, 3),
    "13x13 384->256 3x3, 8 images": (8, 13, 384, 256, 3),
    "13x13 192->384 3x3, 8 images": (8, 13, 192, 384, 3),
    "27x27 64->192 5x5, 8 images": (8, 27, 64, 192, 5),
    "55x55 3->64 11x11 stride 4, 8 images": (8, 55, 3, 64, 11, 4),
}
CASES = {
    "matmul 2048x768x192": matmul(2048, 768, 192),
    "matmul 2048x192x768": matmul(2048, 192, 768),
    "matmul 512x512x512": matmul(512, 512, 512),
    "matmul 64x128x784": matmul(64, 128, 784),
    "matmul 2048x2048x2048": matmul(2048, 2048, 2048),
    "matmul 32x4096x9216": matmul(32, 4096, 9216),
    "matmul 1x128x784": matmul(1, 128, 784),
    "matmul 64x10x128": matmul(64, 10, 128),
    "matmul 2048x1x512": matmul(2048, 1, 512),
    "x w^T 2048x768x192": matmul_turned(2048, 768, 192),
    "x w^T 2048x192x768": matmul_turned(2048, 192, 768),
    "x w^T 64x128x784": matmul_turned(64, 128, 784),
    "x^T y 768x192 over 2048": matmul_weights(768, 192, 2048),
    "x^T y 784x128 over 64": matmul_weights(784, 128, 64),
    **{f"forward {name}": convolution(*shape) for name, shape in CONVOLUTIONS.items()},
    **{f"weights {name}": convolution_weights(*shape) for name, shape in CONVOLUTIONS.items()},
}  # fmt: skip


def extent(axes: list[tuple[int, int]]) -> int:
    """Elements of a buffer that such axes reach."""
    return 1 + sum((length - 1) * stride for length, stride in axes)


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that begins with a line of the cache."""
    room = np.empty(array.size + 16, np.float32)
    skip = -room.ctypes.data % 64 // 4
    room[skip : skip + array.size] = array
    return room[skip : skip + array.size]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="only cases whose names contain one of these")
    parser.add_argument("--assembly", action="store_true", help="print the machine code as well")
    options = parser.parse_args()
    cases = {
        name: x for name, x in CASES.items()
        if not options.names or any(part in name for part in options.names)
    }  # fmt: skip
    if not cases:
        parser.error(f"no name contains that; the names: {', '.join(CASES)}")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = Machine.host()
    print(machine)
    generator = np.random.default_rng(0)
    for name, x in cases.items():
        plan = tiling.plan(x, machine)
        start = time.perf_counter()
        run = compiled(plan, options.assembly)
        compile_seconds = time.perf_counter() - start
        size_a = extent([(y.length, y.a) for y in (*x.batch, *x.rows, *x.summed)])
        size_b = extent([(y.length, y.b) for y in (*x.batch, *x.summed)])
        size_b += (x.columns - 1) * x.column_b
        size_c = math.prod(y.length for y in (*x.batch, *x.rows)) * x.columns
        buffers = [
            aligned(y)
            for y in (
                generator.standard_normal(size_a, np.float32),
                generator.standard_normal(size_b, np.float32),
                np.zeros(size_c, np.float32),
                np.zeros(plan.share, np.float32),
            )
        ]
        a, b, c, p = (y.ctypes.data for y in buffers)
        # Each call begins the buffer of its first unit where that of unit 0 would be.
        calls = [
            partial(run, a, b, c, p - 4 * plan.share * unit, unit, unit + 1)
            for unit in range(plan.units)
        ]
        seconds = best_seconds(calls)
        flops_peak.cache_clear()  # the processor's speed changes
        speed, limit = plan.flops / seconds / 1e9, flops_peak("float", 1)
        tile = f"{plan.tiles[0].size}x{len(plan.panels[0].pieces)}"
        print(
            f"{name:46} {speed:7.1f} GFLOP/s {100 * speed / limit:4.0f} %  "
            f"tile {tile}, {plan.units} units, {plan.blocks} blocks, "
            f"compiled in {1e3 * compile_seconds:.0f} ms",
            flush=True,
        )


if __name__ == "__main__":
    main()
