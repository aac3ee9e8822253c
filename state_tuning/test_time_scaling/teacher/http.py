"""A teacher behind any OpenAI-compatible HTTP endpoint; needs the standard library alone.

Log-probabilities of a given text need the `completions` interface with `echo` (vLLM, SGLang, llama-cpp-python, ...). A
`chat` endpoint cannot give them; there the verification margin is the score.
"""

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from rwkv7_jax.generation.stop_strings import cut_at_first_complete
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.tokenizer import Tokenizer
from state_tuning.core.objective import Batch, Example
from state_tuning.test_time_scaling.teacher import forced
from state_tuning.test_time_scaling.teacher.echo import NotEchoed
from state_tuning.test_time_scaling.teacher.foreign_text import quoted
from state_tuning.test_time_scaling.teacher.http_client import Client, TeacherError
from state_tuning.test_time_scaling.teacher.in_process import Generated, Question, Reading, Scores
from state_tuning.test_time_scaling.teacher.json_answer import (
    Json,
    MalformedAnswer,
    UnusableAnswer,
    part,
    text_of,
    tokens_used,
)
from state_tuning.test_time_scaling.teacher.listed import Lists, targets
from state_tuning.test_time_scaling.teacher.log_probs import echoed, first_token, listed, yes_or_no
from state_tuning.test_time_scaling.teacher.replay import Replay

EMPTY = -20.0
"""Mean log-probability given to an empty sample, which a server cannot score; nats."""
APIS = ("completions", "chat", "llama.cpp")
STOPS = 4
"""Stop strings that servers take."""
ALTERNATIVES = 20
"""Most likely first tokens of the verification's answer that are asked for."""

UNLISTED = "the server lists no likely tokens of a given text"
REASONING = "if the model reasons first, turn that off"
CUT_SHORT = ("length", "max_tokens", "content_filter", "tool_calls", "function_call", "abort", "error")
"""What `finish_reason` says of an answer that did not end by itself."""

T = TypeVar("T")
Item = TypeVar("Item")


class _Found(NamedTuple):
    """What an answer says of one sample."""

    value: float
    """Nats; NaN where it says nothing."""
    length: int
    """Tokens of the sample."""
    used: int
    """Tokens that the server read and wrote."""
    problem: str = ""
    """Why the value is NaN."""


@dataclasses.dataclass(frozen=True)
class HttpTeacher:
    """The larger model behind an address.

    Raises:
      ValueError: a wrong address, or a key that no header can hold.
    """

    base_url: str
    """All before `/completions` or `/chat/completions`, as `http://localhost:8000/v1`."""
    model: str
    """The name that the server knows the model by."""
    api: Literal["completions", "chat", "llama.cpp"] = "completions"
    """Interface; `chat` gives no log-probabilities of a given text. `llama.cpp` is `completions` of llama.cpp's server,
    which does not echo: a grammar makes it write the text."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key, which is sent, never stored and never shown."""
    timeout: float = 60.0
    """Seconds for one attempt, from the host's name to the last byte."""
    retries: int = 4
    """Further attempts after a time-out, a lost connection, 408, 409, 429, 5xx or a malformed answer."""
    backoff: float = 0.5
    """Seconds before the first of them, doubled each time.

    `Retry-After` goes before, as long as a request with all its waits stays within the time that its attempts may take.
    """
    workers: int = 4
    """Requests at once."""
    question: Question = dataclasses.field(default_factory=Question)
    """How a sample is verified."""
    replay: Replay | None = None
    """Where answers are kept, and looked up before the server is asked; None keeps none."""
    missing: Counter[str] = dataclasses.field(default_factory=Counter, compare=False, repr=False)
    """Samples so far whose answers say nothing of them: `log_probability`, `margin`. Their score is NaN."""

    def __post_init__(self):
        if self.api not in APIS:
            raise ValueError(f"api {self.api!r} is unknown: choose {', '.join(APIS[:-1])} or {APIS[-1]}")
        self._client("completions")

    def score(
        self,
        prompts: Sequence[str],
        samples: Sequence[str],
        margin: bool = False,
        ended: Sequence[bool] | None = None,
    ) -> Scores:
        """Scores as `Teacher` says; `log_probability` is NaN from a chat endpoint. The server counts the tokens.

        A sample of which an answer says nothing has a score of NaN, and counts in `missing`. The end of an `ended` one
        is scored where the server itself ends there, and shows its end token.

        Raises:
          TeacherError: there is no answer, or the answers say nothing of any of the samples.
        """
        count = len(samples)
        ends = [False] * count if ended is None else list(ended)
        pairs = list(zip(prompts, samples, strict=True))
        likely, length, tokens = np.full(count, np.nan), np.zeros(count, int), np.zeros(count, int)
        verdict = np.full(count, np.nan)
        if self.api != "chat":
            found = self._map(self._log_probability, list(zip(prompts, samples, ends, strict=True)))
            self._count_missing("log_probability", found)
            likely = np.asarray([one.value for one in found], float)
            length = np.asarray([one.length for one in found], int)
            tokens = np.asarray([one.used for one in found], int)
        if margin:
            found = self._map(self._margin, pairs)
            self._count_missing("margin", found)
            verdict = np.asarray([one.value for one in found], float)
            tokens = tokens + np.asarray([one.used for one in found], int)
        return Scores(likely, verdict, length, tokens)

    def generate(
        self, prompts: Sequence[str], max_tokens: int, stop: Sequence[str] = (), seed: int | None = None
    ) -> Generated:
        """Generates as `Teacher` says. Servers take at most four stop strings; at further ones the text is cut here.

        Raises:
          ValueError: a stop string is empty.
          TeacherError: there is no answer, or one without text that was cut short.
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

    def reads(self, lm: LanguageModel) -> bool:
        """Returns whether it lists likely tokens of a given text: all but `chat` do, of a student of any kind."""
        del lm
        return self.api != "chat"

    def read(
        self,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        samples: Sequence[str],
        examples: Sequence[Example],
        batch: Batch,
    ) -> Reading:
        """Reads as `TokenTeacher` says: the likeliest tokens, where the server cuts the text as the student does.

        Raises:
          TeacherError: there is no answer, or none lists likely tokens. Samples that the server cuts in another way
            throughout count in `missing`.
        """
        ends = [len(e.tokens) > e.completion_start and int(e.tokens[-1]) == tokenizer.eos_id for e in examples]
        found = self._map(self._lists, list(zip(prompts, samples, ends, strict=True)))
        scored = [one for one, _ in found]
        self._count_missing("log_probability", scored)
        value, length, used = (np.asarray(column) for column in list(zip(*scored, strict=True))[:3])
        target, sampled = targets(tokenizer, samples, examples, batch, [lists for _, lists in found])
        silent = int((np.asarray(target.known).sum(1) == 0).sum())
        if any(samples) and all(lists is None for _, lists in found):
            raise TeacherError(f"{self.base_url}: {UNLISTED}; choose signal reward")
        if silent:
            self.missing["distribution"] += silent
        return Reading(Scores(value.astype(float), np.full(len(value), np.nan), length, used), target, sampled)

    def _lists(self, one: tuple[str, str, bool]) -> tuple[_Found, Lists | None]:
        """The mean log-probability of the sample's tokens, and the likeliest tokens at each."""
        if self.api == "llama.cpp":
            return self._forced(one, ALTERNATIVES)
        prompt, sample, _ = one
        kept: list[Lists | None] = [None]

        def also(choice: object) -> None:
            kept[0] = listed(choice, prompt, sample)

        return self._log_probability(one, ALTERNATIVES, also), kept[0]

    def _log_probability(
        self, one: tuple[str, str, bool], alternatives: int = 1, also: Callable[[object], None] | None = None
    ) -> _Found:
        """The mean log-probability of the sample's tokens; `also` gets the answer if they are found in it."""
        prompt, sample, ended = one
        if self.api == "llama.cpp":
            return self._forced(one)[0]
        if not sample:
            return _Found(EMPTY, 0, 0)
        body: Json = {"prompt": prompt + sample, "max_tokens": 1, "temperature": 0.0, "echo": True}
        body |= {"logprobs": alternatives}

        def read(choice: object, used: int) -> _Found:
            try:
                found = _Found(*echoed(choice, prompt, sample, ended), used)
                if also:
                    also(choice)
                return found
            except NotEchoed as problem:
                return _Found(math.nan, 0, used, f"{problem}; scores of a given text need a server with `echo`")

        return self._ask(body, read)

    def _forced(self, one: tuple[str, str, bool], alternatives: int = 1) -> tuple[_Found, Lists | None]:
        """As `_lists`, from a server that is made to write the sample."""
        prompt, sample, ended = one
        if not sample:
            return _Found(EMPTY, 0, 0), None
        cut: Json = {"content": sample, "add_special": False, "with_pieces": True}
        tokens = self._exchange(cut, forced.pieces, "tokenize")
        try:
            grammar = forced.grammar(tokens, sample)
        except NotEchoed as problem:
            return _Found(math.nan, 0, 0, str(problem)), None
        body: Json = {"prompt": prompt, "max_tokens": len(sample.encode(errors="replace")) + 1, "temperature": 0.0}
        body |= {"logprobs": alternatives, "grammar": grammar}

        def read(choice: object, used: int) -> tuple[_Found, Lists | None]:
            try:
                lists = forced.written(choice, tokens)
                return _Found(*forced.mean(lists, ended), used), lists
            except NotEchoed as problem:
                return _Found(math.nan, 0, used, str(problem)), None

        return self._ask(body, read)

    def _margin(self, pair: tuple[str, str]) -> _Found:
        """log p(yes) - log p(no), from the answer's first token."""
        body = self._asking(self.question.text(*pair)) | {"max_tokens": 1, "temperature": 0.0}
        body |= {"logprobs": True, "top_logprobs": ALTERNATIVES} if self.api == "chat" else {"logprobs": ALTERNATIVES}

        def read(choice: object, used: int) -> _Found:
            likely = first_token(choice)
            value = yes_or_no(likely, self.question.yes, self.question.no)
            return _Found(value, 0, used, self._no_verdict(likely) if math.isnan(value) else "")

        return self._ask(body, read)

    def _no_verdict(self, likely: dict[str, float]) -> str:
        words = f"{self.question.yes.strip()!r} and {self.question.no.strip()!r}"
        first = quoted(max(likely, key=lambda token: likely[token]), limit=40)
        return f"no verdict: {first} is the likeliest first token, and neither of {words} is likely; {REASONING}"

    def _count_missing(self, score: str, found: Sequence[_Found]) -> None:
        """Counts samples without a score. Raises: TeacherError if no answer gives one."""
        asked = [one for one in found if one.used or one.problem]
        problems = [one.problem for one in asked if one.problem]
        if problems and len(problems) == len(asked):
            raise TeacherError(f"{self.base_url}: {problems[0]}")
        if problems:
            self.missing[score] += len(problems)

    def _asking(self, prompt: str) -> Json:
        return {"messages": [{"role": "user", "content": prompt}]} if self.api == "chat" else {"prompt": prompt}

    def _text(self, choice: object) -> str:
        """The text of an answer, empty only if the answer is, and ended by itself."""
        text = text_of(part(choice, "message", "content") if self.api == "chat" else part(choice, "text"))
        reason = choice.get("finish_reason") if isinstance(choice, dict) else None
        if not text and reason in CUT_SHORT:
            raise UnusableAnswer(
                f"an answer without text that was cut short ({reason}); give more tokens, or {REASONING}"
            )
        if text is None:
            raise UnusableAnswer(f"an answer without text: refused, or {REASONING}")
        return text

    def _ask(self, body: Json, read: Callable[[object, int], T]) -> T:
        """`read(first choice, tokens used)` of the answer; one that it cannot read counts as malformed."""

        def whole(answer: Json) -> T:
            return read(part(answer, "choices", 0), tokens_used(answer))

        return self._exchange(body, whole, "chat/completions" if self.api == "chat" else "completions")

    def _exchange(self, body: Json, whole: Callable[[Json], T], path: str) -> T:
        """`whole(answer)`, from the replay file or the server."""
        request = {"model": self.model, **body}
        kept = self.replay.get(request) if self.replay is not None else None
        if self.replay is not None and kept is not None:
            try:
                return whole(kept)
            except (MalformedAnswer, UnusableAnswer) as problem:
                raise TeacherError(f"{self.replay.path}: an answer that cannot be used, {problem}") from None
        answer, value = self._client(path).post(request, whole)
        if self.replay is not None:
            self.replay.put(request, answer)
        return value

    def _map(self, call: Callable[[Item], T], items: Sequence[Item]) -> list[T]:
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(call, items))

    def _client(self, path: str) -> Client:
        base = self.base_url.rstrip("/")
        base = base.removesuffix("/v1") if path == "tokenize" else base
        return Client(f"{base}/{path}", _key(self.key_variable), self.timeout, self.retries, self.backoff)


def _key(variable: str) -> str:
    """The key in an environment variable, empty without one. Raises: ValueError unless it is printable ASCII."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"{variable}: the key has characters that are not printable ASCII; set it again")
    return key
