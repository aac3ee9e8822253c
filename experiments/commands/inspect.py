"""Says what is in a checkpoint: format, dimensions, dtypes, hash.

    rwkv7 inspect model.pth

Reads BlinkDL's .pth, safetensors (a file or a Hugging Face folder) and rwkv.cpp's .bin.
"""

from collections.abc import Sequence

from experiments.config.cli import Help, command
from experiments.config.commands import Inspect
from experiments.config.loading import parse
from experiments.config.overrides import check_required

HELP = Help("inspect", __doc__, (Inspect(),))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 2 after a one-line error; 130 after Ctrl-C."""
    return command(argv, HELP, body)


def body(args: list[str]) -> int:
    """Parses the settings and prints the report."""
    config = check_required(parse(Inspect(), args), "rwkv7 inspect FILE")
    from experiments.commands.work import checkpoint

    return checkpoint.inspect(config.file)
