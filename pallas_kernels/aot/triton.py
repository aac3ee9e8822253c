"""The Triton kernels compiled for a named NVIDIA GPU that is not attached; needs the package `triton` alone."""

# pyright: reportAttributeAccessIssue=false, reportMissingImports=false
import importlib.util
import os
import pathlib
import tempfile

import jax

from pallas_kernels.aot import nvidia
from pallas_kernels.aot.table import COMPILED, Row
from pallas_kernels.chunked.layout import OpInputs
from pallas_kernels.triton.launch import Launch

FLOAT32 = ("s0", "s_last", "ds_last", "ds0")


def missing() -> str | None:
    """Returns one line that says what to install, or None."""
    found = importlib.util.find_spec("triton")
    return None if found else "no triton: compiling Triton kernels needs `pip install triton`"


def rows(target: str, shape: tuple[int, ...]) -> list[Row]:
    """Compiles every kernel and dtype for inputs of shape (B, T, H, N).

    Raises:
      FileNotFoundError: a package is missing.
    """
    if message := missing():
        raise FileNotFoundError(message)
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # as the committed tables were made; Triton warns if unset
    out = []
    for dtype in nvidia.DTYPES:
        for name in ("forward", "forward_saving", "backward", "state_backward"):
            floor_ms = 1e3 * nvidia.floor_bytes(name, shape, dtype) / nvidia.TARGETS[target].bandwidth
            row = Row(f"triton {name}", target, shape, dtype, COMPILED, floor_ms=floor_ms)
            try:
                out.append(row._replace(**compile_kernel(name, target, shape, dtype)))
            except Exception as error:  # the message is the result
                out.append(row._replace(status=" ".join(str(error).split())[:200]))
    return out


def compile_kernel(name: str, target: str, shape: tuple[int, ...], dtype: str) -> dict[str, int]:
    """Returns the registers per thread, the bytes spilled and the bytes of shared memory of one kernel."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pallas_kernels.triton import backward, kernels

    full = name == "backward"
    kernel = getattr(backward if full else kernels, name.removesuffix("_saving"))
    x = jax.ShapeDtypeStruct(shape, dtype)
    inputs = OpInputs(x, x, x, x, x, x, None)  # type: ignore[arg-type]
    plan, constants = Launch().plan(inputs)
    tuning = Launch().tuned(inputs)
    constants["SAVE"] = name == "forward_saving"
    short = {"bfloat16": "bf16", "float32": "fp32"}[dtype]
    part = "fp32" if plan.blocks > 1 else short

    def kind(argument: str) -> str:
        if argument in constants:
            return "constexpr"
        if argument in FLOAT32 or argument == "reset":
            return "*i32" if argument == "reset" else "*fp32"
        return f"*{part}" if full and argument[0] == "d" and argument not in ("dy_ptr", "dv_ptr") else f"*{short}"

    signature = {argument: kind(argument) for argument in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, z in enumerate(signature.values()) if z != "constexpr"}
    source = ASTSource(kernel, signature, {n: z for n, z in constants.items() if n in signature}, aligned)
    options = {
        "num_warps": tuning.backward_warps if full else tuning.warps,
        "num_stages": tuning.backward_stages if full else tuning.stages,
    }
    facts = nvidia.TARGETS[target]
    compiled = triton.compile(source, GPUTarget("cuda", 10 * facts.major, 32), options)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "kernel.ptx")
        path.write_text(compiled.asm["ptx"], encoding="utf-8")
        registers, spills = nvidia.examine(str(path), facts.arch)
    return {"registers": registers, "spills": spills, "memory": compiled.metadata.shared}
