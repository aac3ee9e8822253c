"""What an implementation refuses, in one line: heads that have no kernel, and any platform but its own."""

from collections.abc import Callable

from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

HARDWARE = {"cuda": "an NVIDIA GPU", "tpu": "a TPU"}

_only_on = Primitive("wkv7_only_on")


def only_on(x: Array, platform: str, implementation: str) -> Array:
    """x itself, in a program for `platform`, a key of `HARDWARE`, only.

    Raises (when the program is compiled):
        ValueError: for any other platform.
    """
    return _only_on.bind(x, platform=platform, implementation=implementation)


def for_sizes(
    op: Callable[..., tuple[Array, Array]], implementation: str, supports: Callable[[int, int], bool], sizes: str
) -> Callable[..., tuple[Array, Array]]:
    """The op (see `chunked.make_op`) for heads that `supports(K, V)` allows, which are `sizes` in words.

    Raises (the op):
        ValueError: for heads of another size.
    """

    def checked(r, log_w, k, v, a, b, s0, reset=None):
        key, value = r.shape[3], v.shape[3]
        if not supports(key, value):
            raise ValueError(
                f"wkv7: implementation {implementation!r} has kernels for {sizes}, got K = {key}, V = {value}: "
                "take 'chunked'"
            )
        return op(r, log_w, k, v, a, b, s0, reset)

    return checked


def _lower(context, x, *, platform, implementation):
    platforms = tuple(context.module_context.platforms)
    if platforms != (platform,):
        raise ValueError(
            f"wkv7: implementation {implementation!r} runs on {HARDWARE[platform]} only, but this program is compiled "
            f"for {' and '.join(platforms)}: {_advice(platform, platforms)}"
        )
    return [x]


def _advice(platform: str, platforms: tuple[str, ...]) -> str:
    if platform in platforms:
        return "export for one platform at a time, or take 'chunked'"
    return "leave `implementation` out to get what fits the device"


_only_on.def_abstract_eval(lambda x, **_: x)
batching.primitive_batchers[_only_on] = lambda args, axes, **where: (only_on(*args, **where), *axes)
mlir.register_lowering(_only_on, _lower)
