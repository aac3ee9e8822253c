"""A real server on loopback, in a thread, with the embedded student."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import jax.numpy as jnp
import numpy as np
import openai
import pytest

from experiments.build import EMBEDDED
from experiments.config.serve import Serve
from experiments.serve import server
from experiments.serve.app import build
from experiments.serve.assembly import assembled
from experiments.serve.service import Service
from rwkv7_jax import LanguageModel, State, save_state


class Running(NamedTuple):
    """A server, and what tests know of it."""

    url: str
    service: Service
    lm: LanguageModel
    folder: Path
    http: httpx.Client
    openai: openai.OpenAI
    server: server.Server

    def post(self, path: str, **table) -> dict:
        """The answer to a request that is expected to succeed."""
        answer = self.http.post(path, json=table)
        assert answer.status_code in (200, 201), answer.text
        return answer.json()

    def refused(self, status: int, path: str, **table) -> dict:
        """The error of a request that is expected to be refused."""
        answer = self.http.post(path, json=table)
        assert answer.status_code == status, answer.text
        return answer.json()["error"]


@contextlib.contextmanager
def _running(config: Serve, lm: LanguageModel, folder: Path, key: str | None = None) -> Iterator[Running]:
    with (
        contextlib.closing(server.listening(config)) as opened,
        assembled(config, config, config, lm, folder) as service,
    ):
        held: list[server.Server] = []
        app = build(service, config, key, lambda: held[0].closing)
        held.append(server.Server(server.configured(app, config, config.read_timeout)))
        thread = threading.Thread(target=lambda: asyncio.run(held[0].serve(sockets=[opened])))
        thread.start()
        url = server.address(opened)
        try:
            with (
                httpx.Client(base_url=url, timeout=120) as http,
                openai.OpenAI(base_url=f"{url}/v1", api_key=key or "none", max_retries=0, timeout=120) as client,
            ):
                yield Running(url, service, lm, folder, http, client, held[0])
        finally:
            held[0].should_exit = True
            thread.join()


def _random_state(lm: LanguageModel, seed: int, size: float = 30.0) -> State:
    """A state that changes what the model says."""
    rng, zero = np.random.default_rng(seed), lm.zero_state()
    return zero._replace(wkv=jnp.asarray(size * rng.normal(size=zero.wkv.shape), jnp.float32))


@pytest.fixture(scope="session")
def running():
    """running(config, lm, folder, key=None): serves within `with`."""
    return _running


@pytest.fixture(scope="session")
def random_state():
    """random_state(lm, seed, size=30.0): a state that changes what the model says."""
    return _random_state


@pytest.fixture(scope="session")
def student() -> LanguageModel:
    return LanguageModel.load(EMBEDDED["pocket/student"], dtype="float32")


@pytest.fixture(scope="session")
def states(student: LanguageModel) -> dict[str, State]:
    return {name: _random_state(student, seed) for seed, name in enumerate(("calm", "wild"), 1)}


@pytest.fixture(scope="session")
def served(student: LanguageModel, states, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("states")
    for name, state in states.items():
        save_state(folder / f"{name}.safetensors", state, metadata={"base_model_hash": student.weights_hash})
    config = Serve(port=0, slots=4, queue=8, max_tokens=64, max_prompt=2000, max_body=2, read_timeout=2.0, grace=5.0)
    with _running(config, student, folder) as found:
        yield found
