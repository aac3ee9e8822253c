"""Compiles the kernels for this machine and makes them known to XLA. Imported where llvmlite is installed."""

import ctypes
import threading

import jax
import llvmlite.binding as llvm

from pallas_kernels.cpu.handler import handler
from pallas_kernels.cpu.sums import Form, outputs

PREFIX = "rwkv7_few_rows"
"""Beginning of the names that XLA knows."""

_LOCK = threading.Lock()
_KNOWN: set[str] = set()
"""Names that XLA knows."""


def register(kind: str, grouped: bool) -> str:
    """Compiles a kernel, unless that was done, and returns the name that XLA knows."""
    name = f"{PREFIX}_{kind}{'_groups' if grouped else ''}"
    with _LOCK:
        if name not in _KNOWN:
            engine = compiled(handler() + outputs(kind, grouped, form()))
            function = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(engine.get_function_address("handler"))
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(function), platform="cpu")
            # The code is never freed: a thread may be in it while Python ends.
            engine.detach()
            _KNOWN.add(name)
    return name


def form() -> Form:
    """Returns what the registers of this machine hold: 32 of 16 numbers with AVX-512, else half as many sums."""
    return Form(4, 4) if llvm.get_host_cpu_features().get("avx512f") else Form(2, 2)


def compiled(text: str) -> llvm.ExecutionEngine:
    """Compiles IR for this machine.

    Args:
      text: LLVM IR.

    Returns:
      What holds the machine code and knows its addresses.
    """
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(text)
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(module, passes)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine
