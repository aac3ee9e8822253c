"""Many mixed requests at once: every answer is that of `generate` alone, none is lost, and memory stays.

RWKV7_TEST_REQUESTS=10000 is the long form: prompts of 1 to 2,000 tokens and 1,000 sessions; by default there are few.
-s shows what was counted.
"""

import asyncio
import json
import os
from collections.abc import Iterator
from typing import NamedTuple

import httpx
import jax
import numpy as np
import pytest

from experiments.config.serve import Serve
from experiments.serve.other_routes import resident
from rwkv7_jax import SamplingParams, State, generate, save_state
from rwkv7_jax.generation.chat_template import STOPS, render
from rwkv7_jax.generation.stop_strings import cut_at_first_complete, generated_text

REQUESTS = int(os.environ.get("RWKV7_TEST_REQUESTS", "60"))
LONG = REQUESTS >= 1000
STATES = 64
SESSIONS = REQUESTS // 10
LONGEST = 2000 if LONG else 200
AT_ONCE = 24
TOKENS = 12
"""Of an answer: one number, so that `generate` compiles little."""
MIB = 2**20


class Ask(NamedTuple):
    """A request with what is expected of it."""

    kind: str
    prompt: tuple[int, ...]
    state: str | None
    seed: int
    temperature: float
    session: str | None = None


def asks(rng: np.random.Generator, vocab: int, words: list[int]) -> Iterator[list[Ask]]:
    """Requests in groups; those of one group come one after another, groups side by side."""
    kinds = ("text", "stream", "several", "chat", "chat stream", "gone", "cancelled")

    def one(kind: str, session: str | None = None, state: str | None = None) -> Ask:
        length = int(np.exp(rng.uniform(0, np.log(LONGEST if session is None else 40)))) or 1
        prompt = tuple(int(token) for token in rng.choice(words, length))
        temperature = float(rng.choice([0.0, 0.7, 1.0]))
        return Ask(kind, prompt, state, int(rng.integers(2**32)), temperature, session)

    def any_state() -> str | None:
        return None if rng.random() < 0.1 else f"s{rng.integers(STATES)}"

    left = REQUESTS
    for number in range(SESSIONS):
        state, turns = any_state(), int(rng.integers(2, 4))
        yield [one("session", f"talk-{number}", state) for _ in range(turns)]
        left -= turns
    for number in range(max(0, left)):
        yield [one(kinds[number % len(kinds)], None, any_state())]


class Load:
    """Sends requests and checks what comes back."""

    def __init__(self, served, states: dict[str, State]):
        self.served, self.states, self.lm = served, states, served.lm
        self.answered: list[tuple[Ask, list[str]]] = []
        self.gone = self.repeated = 0

    async def run(self, groups: list[list[Ask]]) -> None:
        queue = iter(groups)
        limits = httpx.Limits(max_connections=2 * AT_ONCE)
        async with httpx.AsyncClient(base_url=self.served.url, timeout=600, limits=limits) as http:

            async def worker() -> None:
                for group in queue:
                    for ask in group:
                        await self.send(http, ask)

            await asyncio.gather(*(worker() for _ in range(AT_ONCE)))

    async def send(self, http: httpx.AsyncClient, ask: Ask) -> None:
        path, table = self.request(ask)
        while True:
            if ask.kind in ("gone", "cancelled"):
                await self.leave(http, path, table, ask)
                return
            answer = await http.post(path, json=table)
            if answer.status_code != 429:
                break
            self.repeated += 1
            await asyncio.sleep(0.05)
        assert answer.status_code == 200, answer.text
        self.answered.append((ask, texts(answer, ask)))

    def request(self, ask: Ask) -> tuple[str, dict]:
        table = {"model": f"student:{ask.state}" if ask.state else "student", "seed": ask.seed}
        table |= {"temperature": ask.temperature, "max_tokens": TOKENS}
        if ask.kind.startswith("chat"):
            table["messages"] = messages(self.lm, ask)
            return "/v1/chat/completions", table | {"stream": ask.kind == "chat stream"}
        table |= {"prompt": list(ask.prompt), "stream": ask.kind in ("stream", "gone")}
        if ask.kind == "several":
            table["n"] = 2
        if ask.kind in ("gone", "cancelled"):
            table["max_tokens"] = 500
        return "/v1/completions", table | ({"session": ask.session} if ask.session else {})

    async def leave(self, http: httpx.AsyncClient, path: str, table: dict, ask: Ask) -> None:
        """Goes away in the middle of an answer."""
        self.gone += 1
        if ask.kind == "gone":
            async with http.stream("POST", path, json=table) as answer:
                async for _ in answer.aiter_raw():
                    break
            return
        try:
            async with asyncio.timeout(0.05 * (ask.seed % 5)):
                await http.post(path, json=table)
        except TimeoutError:
            pass

    def check(self) -> None:
        """Compares all answers with those of `generate` alone."""
        before: dict[str, list[int]] = {}
        for ask, found in self.answered:
            if ask.kind.startswith("chat"):
                expected = [self.chat_alone(ask)]
            else:
                read = before.get(ask.session or "", [])
                seeds = [ask.seed, (ask.seed + 1) % 2**32] if ask.kind == "several" else [ask.seed]
                alone = [self.alone([*read, *ask.prompt], ask, seed) for seed in seeds]
                expected = [text for _, text in alone]
                if ask.session:
                    before[ask.session] = [*read, *ask.prompt, *alone[0][0]]
            assert found == expected, ask

    def alone(self, tokens: list[int], ask: Ask, seed: int) -> tuple[list[int], str]:
        model, params = self.lm.for_decoding
        settings = SamplingParams(temperature=ask.temperature, max_new_tokens=TOKENS)
        state = self.states[ask.state] if ask.state else None
        key = jax.random.key(seed)
        found = generate(model, params, [tokens], state, key, settings, eos_id=self.lm.tokenizer.eos_id).tokens[0]
        return found, generated_text(self.lm.tokenizer, found, ())

    def chat_alone(self, ask: Ask) -> str:
        tokens = self.lm.encode(render(messages(self.lm, ask)))
        return cut_at_first_complete(self.alone(tokens, ask, ask.seed)[1], STOPS).lstrip()


def messages(lm, ask: Ask) -> list[dict[str, str]]:
    return [{"role": "user", "content": lm.decode(ask.prompt)}]


def texts(answer: httpx.Response, ask: Ask) -> list[str]:
    """The texts of an answer, streamed or not."""
    if "stream" not in ask.kind:
        choices = answer.json()["choices"]
        return [one["message"]["content"] if ask.kind == "chat" else one["text"] for one in choices]
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert lines[-1] == "[DONE]", lines[-1]
    parts = [json.loads(line)["choices"][0] for line in lines[:-1]]
    assert parts[-1]["finish_reason"] in ("stop", "length")
    return ["".join(one["delta"].get("content", "") if ask.kind == "chat stream" else one["text"] for one in parts)]


@pytest.mark.parametrize("seed", [0])
def test_every_answer_is_that_of_generate_alone(running, student, random_state, tmp_path, seed):
    states = {f"s{number}": random_state(student, number) for number in range(STATES)}
    for name, state in states.items():
        save_state(tmp_path / f"{name}.safetensors", state, metadata={"base_model_hash": student.weights_hash})
    special = {student.tokenizer.eos_id}
    words = [token for token in range(student.config.vocab_size) if token not in special and student.decode([token])]
    groups = list(asks(np.random.default_rng(seed), student.config.vocab_size, words))
    config = Serve(port=0, slots=8 if LONG else 4, queue=16, max_tokens=500, max_prompt=4000, max_sessions=2 * SESSIONS)
    with running(config, student, tmp_path) as served:
        load = Load(served, states)
        half = len(groups) // 2
        asyncio.run(load.run(groups[:half]))
        middle = resident()
        asyncio.run(load.run(groups[half:]))
        grown = resident() - middle
        served.http.get("/health")
        stats = served.service.engine.stats()
        assert len(served.service.sessions) == SESSIONS
    load.check()
    sent = sum(map(len, groups))
    assert len(load.answered) + load.gone == sent
    told = f"{len(load.answered)} answers right, {load.gone} left, {load.repeated} repeated after 429"
    print(f"\n{sent} requests: {told}; {stats}; {middle / MIB:.0f} MiB at half, {grown / MIB:+.0f} MiB after")
    assert grown < 0.25 * middle
