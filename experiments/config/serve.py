"""The settings of `rwkv7 serve`."""

import dataclasses

from experiments.config.commands import FLOAT32_MODEL, CacheConfig
from experiments.config.overrides import option
from experiments.config.schema import ModelConfig

LOOPBACK = ("127.0.0.1", "localhost", "::1")
KEY_VARIABLE = "RWKV7_API_KEY"
CACHE = CacheConfig()


def _least(config: object, least: float, *names: str) -> None:
    if min(getattr(config, name) for name in names) < least:
        raise ValueError(f"must be at least {least:g}")


@dataclasses.dataclass(frozen=True)
class ServedConfig:
    """What is served, and where it is kept."""

    model: ModelConfig = FLOAT32_MODEL
    states: str | None = option(
        None,
        "folder of state files, each a model name; uploads and sessions are kept in it; none: until the end",
    )
    state_layout: str | None = option(None, "axis order of state files in the folder that do not say it")
    max_sessions: int = option(10_000, "conversations that are kept, the newest")
    max_responses: int = option(1_000, "responses that can be continued, the newest")


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Who can reach the server."""

    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(8000, "port; 0: a free one")
    api_key: str | None = option(None, f"clients must send it; none: {KEY_VARIABLE} of the environment, if it is set")
    cors: tuple[str, ...] = option(
        (), "origin of a web page that may call the server; may be repeated", repeat=True, address=True
    )
    allow_host: tuple[str, ...] = option(
        (), "a further host name under which a server on loopback may be called; may be repeated", repeat=True
    )
    connections: int = option(1024, "connections at once; more are answered 503")
    grace: float = option(30.0, "seconds in which running answers may end after SIGTERM or Ctrl-C")

    @property
    def on_loopback(self) -> bool:
        """Whether other machines cannot reach the server."""
        return self.host in LOOPBACK or self.host.startswith("127.")


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """How answers are generated side by side."""

    slots: int = option(8, "answers that are generated side by side")
    queue: int = option(64, "answers that may wait for a slot; more are refused with 429")
    prefill_chunk: int = option(128, "tokens of a prompt that are read between two steps, a multiple of 128")
    prefix_cache: int = option(256, "MiB for states of prompts that begin alike; 0: none")


@dataclasses.dataclass(frozen=True)
class LimitsConfig:
    """What one request may ask for."""

    max_tokens: int = option(1024, "longest answer in tokens, and the default of a chat")
    max_prompt: int = option(65_536, "longest prompt in tokens")
    max_choices: int = option(128, "answers to one request: prompts times n")
    max_body: int = option(64, "largest request body in MiB")
    timeout: float = option(600.0, "seconds for one answer, the time in the queue included")
    read_timeout: float = option(20.0, "seconds in which a client must have sent its headers, and then its body")


@dataclasses.dataclass(frozen=True)
class Serve(LimitsConfig, EngineConfig, NetworkConfig, ServedConfig):
    """`rwkv7 serve`."""

    quiet: bool = option(False, "no report about the checkpoint on standard error")
    system: CacheConfig = CACHE

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ValueError("must lie in 0..65535")
        _least(self, 1, "slots", "queue", "prefill_chunk", "max_sessions", "max_responses", "connections")
        _least(self, 1, "max_tokens", "max_prompt", "max_choices", "max_body")
        if self.prefill_chunk % 128:
            raise ValueError("must be a multiple of 128")
        _least(self, 0, "prefix_cache", "grace")
        _least(self, 0.1, "timeout", "read_timeout")
