"""Loads what `rwkv7 serve` serves, and serves it until a signal comes."""

import contextlib
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator

from experiments.build import load_model
from experiments.config.overrides import UsageError
from experiments.config.serve import KEY_VARIABLE, NetworkConfig, Serve
from experiments.serve import server
from experiments.serve.app import build
from experiments.serve.assembly import assembled
from experiments.serve.service import Service
from rwkv7_jax.compile_cache import use_compilation_cache
from rwkv7_jax.locks import lock
from rwkv7_jax.terminal import readable


def run(config: Serve) -> int:
    """Serves until SIGTERM or Ctrl-C; returns the exit status.

    Raises:
      ValueError, OSError: wrong files or settings, an address or a folder in use.
    """
    key = api_key(config)
    use_compilation_cache(config.system.compilation_cache, least_s=0.0)
    with (
        contextlib.closing(server.listening(config)) as opened,
        _folder(config) as folder,
        assembled(config, config, config, load_model(config.model), folder) as service,
    ):
        held: list[server.Server] = []
        app = build(service, config, key, lambda: bool(held) and held[0].closing)
        held.append(server.Server(server.configured(app, config, config.read_timeout)))
        _tell(config, key, service)
        print(f"serving {service.name} at {server.address(opened)} (Ctrl-C ends it)", flush=True)
        held[0].run(sockets=[opened])
    print("ended", flush=True)
    return 0


def api_key(network: NetworkConfig) -> str | None:
    """The key that clients must send, if any.

    Raises:
      UsageError: it is empty, or no header can hold it.
    """
    key = os.environ.get(KEY_VARIABLE) or None if network.api_key is None else network.api_key
    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise UsageError("api_key: letters, digits and marks of ASCII without blanks are needed")
    return key


@contextlib.contextmanager
def _folder(config: Serve) -> Iterator[pathlib.Path]:
    """The folder of states, locked; without one, one that is removed at the end."""
    if config.states is None:
        with tempfile.TemporaryDirectory(prefix="rwkv7-serve-") as name:
            yield pathlib.Path(name)
        return
    folder = pathlib.Path(config.states).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"states: {folder} is a file; give a folder of state files")
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder, "end that server, or give another folder with --states"):
        yield folder


def _tell(config: Serve, key: str | None, service: Service) -> None:
    """What is served, and what may be wrong, on standard error."""
    lines = [] if config.quiet else [f"{service.name}: {service.lm.summary}"]
    reasons = {name: service.states.refusal(name) for name in service.states.names()}
    usable = [name for name, reason in reasons.items() if not reason]
    if usable and not config.quiet:
        lines.append(f"states: {', '.join(usable)}")
    if config.states is None and not config.quiet:
        lines.append("states and sessions are kept until the end of this server; --states DIR keeps them")
    lines += [f"warning: {reason}" for reason in reasons.values() if reason]
    if key is None and not config.on_loopback:
        lines.append(f"warning: any machine that reaches {config.host} may use this server; set {KEY_VARIABLE}")
    for line in lines:
        print(readable(line), file=sys.stderr, flush=True)
