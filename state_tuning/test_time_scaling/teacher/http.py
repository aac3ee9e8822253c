"""A teacher behind any OpenAI-compatible HTTP endpoint; needs the standard library alone.

Log-probabilities of a given text need the `completions` interface with `echo` (vLLM, SGLang, llama-cpp-python, ...). A
`chat` endpoint cannot give them; there the verification margin is the score.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, TypeVar

import numpy as np

from rwkv7_jax.generation.stop_strings import cut_at_first_complete
from state_tuning.test_time_scaling.teacher.http_client import Client, Json, MalformedAnswer
from state_tuning.test_time_scaling.teacher.in_process import Generated, Question, Scores
from state_tuning.test_time_scaling.teacher.replay import Replay

EMPTY = -20.0
"""Mean log-probability given to an empty sample, which a server cannot score; nats."""
LEAST = -100.0
"""Log-probabilities below count as this: servers write -9999 or -Infinity for what they cut off."""
ROUNDING = 1e-3
"""Log-probabilities are at most this."""
STOPS = 4
"""Stop strings that servers take."""
ALTERNATIVES = 20
"""Most likely first tokens of the verification's answer that are asked for."""

T = TypeVar("T")
Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class HttpTeacher:
    """The larger model behind an address; `base_url` is all before `/completions` or `/chat/completions`.

    Raises:
      ValueError: a wrong address, or a key that no header can hold.
    """

    base_url: str
    model: str
    api: Literal["completions", "chat"] = "completions"
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key, which is sent, never stored and never shown."""
    timeout: float = 60.0
    """Seconds for one attempt, looked at whenever bytes come; a silent server is given up after as many more."""
    retries: int = 4
    """Further attempts after a time-out, a lost connection, 408, 409, 429, 5xx or a malformed answer."""
    backoff: float = 0.5
    """Seconds before the first of them, doubled each time; `Retry-After` goes before."""
    workers: int = 4
    """Requests at once."""
    question: Question = dataclasses.field(default_factory=Question)
    replay: Replay | None = None

    def __post_init__(self):
        if self.api not in ("completions", "chat"):
            raise ValueError(f"api {self.api!r} is unknown: choose completions or chat")
        self._client()

    def score(self, prompts: Sequence[str], samples: Sequence[str], margin: bool = False) -> Scores:
        """Scores as `Teacher` says; `log_probability` is NaN from a chat endpoint. The server counts the tokens."""
        pairs = list(zip(prompts, samples, strict=True))
        count = len(pairs)
        likely, length, tokens = np.full(count, np.nan), np.zeros(count, int), np.zeros(count, int)
        verdict = np.full(count, np.nan)
        if self.api == "completions":
            for i, (value, size, used) in enumerate(self._map(self._log_probability, pairs)):
                likely[i], length[i], tokens[i] = value, size, used
        if margin:
            for i, (value, used) in enumerate(self._map(self._margin, pairs)):
                verdict[i] = value
                tokens[i] += used
        return Scores(likely, verdict, length, tokens)

    def generate(
        self, prompts: Sequence[str], max_tokens: int, stop: Sequence[str] = (), seed: int | None = None
    ) -> Generated:
        """Generates as `Teacher` says. Servers take at most four stop strings; at further ones the text is cut here.

        Raises:
          ValueError: a stop string is empty.
          TeacherError: there is no answer.
        """
        if not all(stop):
            raise ValueError("a stop string is empty; leave it out")
        common: Json = {"max_tokens": max_tokens, "temperature": 0.0 if seed is None else 1.0}
        common |= {"stop": list(stop)[:STOPS]} if stop else {}
        bodies = [
            common | self._asking(prompt) | ({} if seed is None else {"seed": seed + i})
            for i, prompt in enumerate(prompts)
        ]
        found = self._map(lambda body: self._ask(body, lambda choice, used: (self._text(choice), used)), bodies)
        texts = [cut_at_first_complete(text, stop) for text, _ in found]
        return Generated(texts, np.asarray([used for _, used in found], int))

    def _log_probability(self, pair: tuple[str, str]) -> tuple[float, int, int]:
        """(mean log-probability of the sample's tokens, their number, tokens used)."""
        prompt, sample = pair
        if not sample:
            return EMPTY, 0, 0
        body: Json = {"prompt": prompt + sample, "max_tokens": 1, "temperature": 0.0, "echo": True, "logprobs": 1}
        return self._ask(body, lambda choice, used: (*_echoed(choice, prompt, sample), used))

    def _margin(self, pair: tuple[str, str]) -> tuple[float, int]:
        """(log p(yes) - log p(no), tokens used), from the answer's first token."""
        body = self._asking(self.question.text(*pair)) | {"max_tokens": 1, "temperature": 0.0}
        body |= {"logprobs": True, "top_logprobs": ALTERNATIVES} if self.api == "chat" else {"logprobs": ALTERNATIVES}
        words = (self.question.yes, self.question.no)
        return self._ask(body, lambda choice, used: (_yes_or_no(_first_token(choice), *words), used))

    def _asking(self, prompt: str) -> Json:
        return {"messages": [{"role": "user", "content": prompt}]} if self.api == "chat" else {"prompt": prompt}

    def _text(self, choice: Json) -> str:
        text = choice["message"]["content"] if self.api == "chat" else choice["text"]
        if not isinstance(text, str | None):
            raise ValueError(f"the text is a JSON {type(text).__name__}")
        return text or ""

    def _ask(self, body: Json, read: Callable[[Json, int], T]) -> T:
        """`read(first choice, tokens used)` of the answer; one that it cannot read counts as malformed."""

        def whole(answer: Json) -> T:
            try:
                usage = answer["usage"]
                return read(answer["choices"][0], int(usage["prompt_tokens"]) + int(usage.get("completion_tokens", 0)))
            except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError) as error:
                raise MalformedAnswer(f"{type(error).__name__}: {error}") from error

        request = {"model": self.model, **body}
        kept = self.replay.get(request) if self.replay is not None else None
        if kept is not None:
            return whole(kept)
        answer, value = self._client().post(request, whole)
        if self.replay is not None:
            self.replay.put(request, answer)
        return value

    def _map(self, call: Callable[[Item], T], items: Sequence[Item]) -> list[T]:
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(call, items))

    def _client(self) -> Client:
        path = "chat/completions" if self.api == "chat" else "completions"
        url, key = f"{self.base_url.rstrip('/')}/{path}", _key(self.key_variable)
        return Client(url, key, self.timeout, self.retries, self.backoff)


def _key(variable: str) -> str:
    """The key in an environment variable, empty without one. Raises: ValueError unless it is printable ASCII."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"{variable}: the key has characters that are not printable ASCII; set it again")
    return key


def _echoed(choice: Json, prompt: str, sample: str) -> tuple[float, int]:
    """(mean log-probability, number) of the echoed tokens in the sample; one across its beginning is left out."""
    found = choice["logprobs"]
    tokens, values = found["tokens"], found["token_logprobs"]
    starts = found.get("text_offset") or np.cumsum([0, *map(len, tokens)])[:-1].tolist()
    begin, end = len(prompt), len(prompt) + len(sample)
    inside = [_nats(value) for at, value in zip(starts, values, strict=True) if begin <= at < end and value is not None]
    if not inside:
        raise ValueError("no log-probability inside the chain; does the server support echo?")
    return sum(inside) / len(inside), len(inside)


def _first_token(choice: Json) -> dict[str, float]:
    """Log-probabilities of the most likely first tokens of an answer."""
    found = choice["logprobs"]
    if "content" in found:
        return {row["token"]: float(row["logprob"]) for row in found["content"][0]["top_logprobs"]}
    return {token: float(value) for token, value in found["top_logprobs"][0].items()}


def _yes_or_no(likely: dict[str, float], yes: str, no: str) -> float:
    """log p(yes) - log p(no), case and spaces aside; a word not listed counts as the least likely listed one."""
    listed = {token: _nats(value) for token, value in likely.items()}
    floor = min(listed.values())

    def mass(word: str) -> float:
        values = [value for token, value in listed.items() if token.strip().lower() == word.strip().lower()]
        return _logsumexp(values) if values else floor

    return mass(yes) - mass(no)


def _nats(value: float) -> float:
    """A log-probability from LEAST to 0. Raises: ValueError for any other value."""
    if not value <= ROUNDING:
        raise ValueError(f"{value} is not a log-probability")
    return min(max(float(value), LEAST), 0.0)


def _logsumexp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))
