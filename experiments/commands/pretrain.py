"""Trains an RWKV-7 from scratch on the pocket world's text.

    rwkv7 pretrain --config pretrain_student

Documents are packed whole into sequences and each starts from the zero state. Muon with a cosine schedule; the embedded
models were made by it. An interrupted run resumes with the same command and gives the same weights.
"""

from collections.abc import Sequence

from experiments.config.cli import Help, command
from experiments.config.loading import load_config, split_config
from experiments.config.schema import PretrainConfig

HELP = Help("pretrain", __doc__, (PretrainConfig(),))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 2 after a one-line error, 130 after Ctrl-C."""
    return command(argv, HELP, body, "interrupted; run the same command to resume from the last checkpoint")


def body(args: list[str]) -> int:
    """Parses the settings and trains."""
    config = load_config(*split_config(args, PretrainConfig), PretrainConfig)
    from experiments.commands.work import pretrain

    return pretrain.run(config)
