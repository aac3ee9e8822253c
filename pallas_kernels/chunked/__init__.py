"""WKV-7 chunk by chunk in plain XLA: the CPU default and the fallback on every device."""

from pallas_kernels.chunked.op import by_platform, make_op, wkv7_chunked

__all__ = ["by_platform", "make_op", "wkv7_chunked"]
