"""The WKV-7 op for every device: `wkv7` over many tokens, `wkv7_step` over one, `gated_delta_rule` in its terms."""

import sys

from pallas_kernels.gated_delta import gated_delta_rule
from pallas_kernels.moved import refuse_moved
from pallas_kernels.op import IMPLEMENTATIONS, wkv7, wkv7_step
from pallas_kernels.sequence import wkv7_sequence_parallel

__version__ = "0.2.0"

__all__ = ["IMPLEMENTATIONS", "__version__", "gated_delta_rule", "wkv7", "wkv7_sequence_parallel", "wkv7_step"]

refuse_moved(sys.argv, sys.orig_argv)


def __dir__() -> list[str]:
    return sorted([*__all__, "gpu", "reference", "tpu"])
