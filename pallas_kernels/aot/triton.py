"""The Triton kernels compiled for a named NVIDIA GPU that is not attached; needs the package `triton` alone."""

# pyright: reportAttributeAccessIssue=false, reportMissingImports=false
import importlib.util
import os
import pathlib
import tempfile
from typing import NamedTuple

import jax

from pallas_kernels.aot import nvidia
from pallas_kernels.aot.nvidia import joined
from pallas_kernels.aot.table import COMPILED, Row
from pallas_kernels.chunked.layout import OpInputs
from pallas_kernels.gpu.blocks import Schedule
from pallas_kernels.gpu.launch import Launch as PallasLaunch
from pallas_kernels.gpu.tuning import Tuning
from pallas_kernels.triton.call import Constants, Kernel
from pallas_kernels.triton.call import constants as make_constants
from pallas_kernels.triton.launch import Launch

FLOAT32 = ("s0", "s_last", "ds_last", "ds0", "first", "last", "factors")
"""Arguments that are float32 whatever the inputs are."""
PARTS = ("dr_ptr", "dlog_w_ptr", "dk_ptr", "da_ptr", "db_ptr")
"""Gradients of which programs write parts, in float32 where there are several."""


RULES = ("forward", "forward_saving", "backward", "state_backward")


class Program(NamedTuple):
    """One kernel, and how it is compiled."""

    name: str
    kernel: Kernel
    constants: Constants
    schedule: Schedule


def missing() -> str | None:
    """Returns one line that says what to install, or None."""
    found = importlib.util.find_spec("triton")
    return None if found else "no triton: compiling Triton kernels needs `pip install triton`"


def rows(target: str, case: nvidia.Case) -> list[Row]:
    """Compiles every kernel and dtype.

    Raises:
      FileNotFoundError: a package is missing.
    """
    if message := missing():
        raise FileNotFoundError(message)
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # as the committed tables were made; Triton warns if unset
    out = []
    for dtype in case.dtypes:
        for rule in (*RULES, *(f"{rule}{nvidia.WIDE}" for rule in RULES)):
            floor_ms = 1e3 * nvidia.floor_bytes(rule, case.shape, dtype) / nvidia.TARGETS[target].bandwidth
            row = Row(f"triton {rule}", target, case.shape, dtype, COMPILED, floor_ms=floor_ms, resets=case.resets)
            try:
                with nvidia.named(target):
                    wanted = programs(rule, inputs(case, dtype))
                found = [compile_program(one, target, dtype) for one in wanted]
                out += joined(row, found, nvidia.TARGETS[target])
            except Exception as error:  # the message is the result
                out.append(row._replace(status=" ".join(str(error).split())[:200]))
    return out


def inputs(case: nvidia.Case, dtype: str) -> OpInputs:
    """Returns abstract inputs of the op; log_w is of the same dtype as the rest."""
    x = jax.ShapeDtypeStruct(case.shape, dtype)
    reset = jax.ShapeDtypeStruct(case.shape[:2], bool) if case.resets else None
    return OpInputs(x, x, x, x, x, x, reset)  # type: ignore[arg-type]


def programs(rule: str, x: OpInputs, tuning: Tuning | None = None) -> list[Program]:
    """Returns the kernels of a rule of `triton.launch.Launch`, as it would launch them."""
    from pallas_kernels.triton import backward, kernels

    if rule.endswith(nvidia.WIDE):
        return wide_programs(rule.removesuffix(nvidia.WIDE), tuning, x)
    launch = Launch(tuning)
    tuned = launch.tuned(x)
    if launch.divides(rule.removesuffix("_saving"), x):
        return divided_programs(rule, launch, x)
    constants = launch.plan(x)[1]
    if rule == "backward":
        return [
            Program(rule, backward.backward, constants, Schedule(tuned.backward_warps, tuned.backward_stages)),
        ]
    saving = rule == "forward_saving"
    constants |= {"SAVE": saving, "SAVE_U": saving and not launch.divides("backward", x)}
    kernel = getattr(kernels, rule.removesuffix("_saving"))
    return [Program(rule, kernel, constants, Schedule(tuned.warps, tuned.stages))]


def divided_programs(rule: str, launch: Launch, x: OpInputs) -> list[Program]:
    """Returns the kernels of a rule that is divided over time."""
    from pallas_kernels.triton import parallel

    plan, tuning = PallasLaunch(launch.tuning).divided_plan(x)
    constants, back = make_constants(x, plan), rule in ("backward", "state_backward")
    block = min(plan.value_tile, tuning.block)
    follow = {"VT": block, "REVERSE": back, "SAVE": rule != "state_backward", "STAGES": tuning.stages}
    found = [
        Program("prepare", parallel.prepare, constants | {"BACKWARD": back}, Schedule(tuning.prepare_warps, 1)),
        Program("scan", parallel.scan, constants | follow, Schedule(tuning.scan_warps, tuning.stages)),
    ]
    if rule == "backward":
        values = make_constants(x, plan.wide_keys())
        found.append(Program("gradients", parallel.gradients, values, Schedule(tuning.gradient_warps, 1)))
    elif not back:
        found.append(Program("outputs", parallel.outputs, constants, Schedule(tuning.output_warps, 1)))
    return found


def wide_programs(rule: str, tuning: Tuning | None, x: OpInputs) -> list[Program]:
    """Returns the kernels of a rule for log_w down to -20."""
    from pallas_kernels.triton import wide

    plan, chosen, block = PallasLaunch(tuning).wide_plan(x)
    constants = make_constants(x, plan) | {"LEVELS": plan.chunk.bit_length() - 1}
    back = rule in ("backward", "state_backward")
    kernel = wide.state_backward if back else wide.forward
    follow = {"VT": block, "SAVE": rule in ("forward_saving", "backward")}
    found = [
        Program(
            "prepare", wide.prepare, constants | {"WITH_K": rule != "state_backward"}, Schedule(chosen.prepare_warps, 1)
        ),
        Program("over time", kernel, constants | follow, Schedule(chosen.follow_warps, chosen.stages)),
    ]
    if rule == "backward":
        constants |= make_constants(x, plan.wide_keys())
        found.append(Program("gradients", wide.gradients, constants, Schedule(chosen.gradient_warps, 1)))
    return found


def compile_program(program: Program, target: str, dtype: str) -> tuple[nvidia.Kernel, int]:
    """Returns what was counted in one kernel, and its bytes of shared memory."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, constants = program.kernel, program.constants
    short = {"bfloat16": "bf16", "float32": "fp32"}[dtype]
    divided = -(-int(constants["V"]) // int(constants["VT"])) > 1

    def kind(argument: str) -> str:
        if argument in constants:
            return "constexpr"
        if argument == "reset":
            return "*i32"
        return "*fp32" if argument in FLOAT32 or (divided and argument in PARTS) else f"*{short}"

    signature = {argument: kind(argument) for argument in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, z in enumerate(signature.values()) if z != "constexpr"}
    source = ASTSource(kernel, signature, {n: z for n, z in constants.items() if n in signature}, aligned)
    options = {"num_warps": program.schedule.warps, "num_stages": program.schedule.stages}
    facts = nvidia.TARGETS[target]
    compiled = triton.compile(source, GPUTarget("cuda", 10 * facts.major, 32), options)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "kernel.ptx")
        path.write_text(compiled.asm["ptx"], encoding="utf-8")
        (found,) = nvidia.examine(str(path), facts.arch)
    return found._replace(name=program.name), compiled.metadata.shared
