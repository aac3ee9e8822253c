"""Serves a model over HTTP in the form of OpenAI's API, each request from its own state; with a page to try it.

    rwkv7 serve
    rwkv7 serve --model.checkpoint model.pth --states states
    rwkv7 serve --model.checkpoint model.pth --states states --port 8001 --api_key KEY

Without --model.checkpoint it is the embedded student, and without --port http://127.0.0.1:8000. Each state file in the
folder is a model name, `model:NAME`, and http://127.0.0.1:8000 in a browser shows a page to try them.
Ctrl-C or SIGTERM ends it once the running answers are there. Needs pip install "rwkv7-jax[serve]".
"""

import sys
from collections.abc import Sequence
from importlib.util import find_spec

from experiments.config.cli import Help, command
from experiments.config.loading import parse
from experiments.config.overrides import UsageError
from experiments.config.serve import Serve

HELP = Help("serve", __doc__, (Serve(),))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 after an orderly end; 2 after a one-line error; 130 after Ctrl-C before the start."""
    args = sys.argv[1:] if argv is None else list(argv)
    return command(args or ["--host", Serve.host], HELP, body)


def body(args: list[str]) -> int:
    """Parses the settings and serves."""
    if not args[0].startswith("-") and "=" not in args[0]:
        raise UsageError(f"the model is named by a key: --model.checkpoint {args[0]}")
    config = parse(Serve(), args)
    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise UsageError(f'serve needs {" and ".join(missing)}: pip install "rwkv7-jax[serve]"')
    from experiments.commands.work import serve

    return serve.run(config)
