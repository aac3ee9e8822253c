"""Writes a checkpoint in another format, which the suffix of the target names.

    rwkv7 convert model.pth model.safetensors
    rwkv7 convert model.safetensors model.bin --dtype float16
    rwkv7 convert model.pth small.safetensors --quantize int8
    rwkv7 convert model.pth my-rwkv7/

Reads BlinkDL's .pth, safetensors (a file or a Hugging Face folder) and rwkv.cpp's .bin; writes all three. A name
without suffix, or with a slash at the end, becomes a folder for the Hugging Face hub: weights under the names of
flash-linear-attention, config.json, the tokenizer.json beside the source, and a card.
"""

from collections.abc import Sequence

from experiments.config.cli import Help, command
from experiments.config.commands import Convert
from experiments.config.loading import parse
from experiments.config.overrides import check_required

HELP = Help("convert", __doc__, (Convert(),))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 2 after a one-line error; 130 after Ctrl-C."""
    return command(argv, HELP, body, "interrupted; nothing was written")


def body(args: list[str]) -> int:
    """Parses the settings and converts."""
    config = check_required(parse(Convert(), args), "rwkv7 convert SOURCE TARGET")
    from experiments.commands.work import checkpoint

    return checkpoint.convert(config.source, config.target, config.dtype, config.quantize)
