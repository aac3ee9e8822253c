"""What requests ask for, read from their JSON: all that the three ways of asking for text have in common."""

import dataclasses
import hashlib
import secrets
from collections.abc import Sequence
from typing import NamedTuple

from experiments.config.serve import LimitsConfig
from experiments.reporting.json_text import json_text
from experiments.serve.errors import ApiError, invalid, shown
from experiments.serve.fields import Fields
from experiments.serve.names import checked_name
from rwkv7_jax.generation.sampling import LARGEST, SamplingParams

SEEDS = 2**32
MOST_STOPS, LONGEST_STOP = 64, 1000
MOST_LOGPROBS = 20
MOST_MIXED = 32
HARMLESS = (
    "user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key",
    "modalities", "verbosity", "prediction", "prompt_cache_retention",
)  # fmt: skip
"""Fields of OpenAI's API that change no text."""


class Source(NamedTuple):
    """The state that an answer begins from: at most one of the fields is set, or none for the zero state."""

    name: str | None = None
    mix: tuple[tuple[str, float], ...] = ()
    data: str | None = None
    """A state file in base64."""
    layout: str | None = None
    override: bool = False

    @property
    def identity(self) -> str:
        """Tells two of them apart; for states by name, by the name alone."""
        if self.data is not None:
            return f"data {hashlib.sha256(self.data.encode()).hexdigest()}"
        return json_text(self.mix) if self.mix else f"name {self.name}" if self.name else "none"


@dataclasses.dataclass(frozen=True)
class Wish:
    """How an answer is to be generated and told."""

    model: str
    """As answers call it."""
    source: Source | None
    """None: the request names neither a model nor a state."""
    sampling: SamplingParams
    seed: int
    stop: tuple[str, ...]
    n: int = 1
    stream: bool = False
    usage: bool = False
    """Whether a stream ends with the number of tokens."""
    logprobs: int | None = None
    """How many of the likeliest tokens are told beside each; None: no log-probabilities."""
    return_state: bool = False
    session: str | None = None

    def with_logprobs(self, count: int | None) -> "Wish":
        """The same, with log-probabilities of so many tokens beside each."""
        return dataclasses.replace(self, logprobs=count)


def read(fields: Fields, base: str, limits: LimitsConfig, lengths: Sequence[str], default: int) -> Wish:
    """Reads the common fields.

    Args:
      fields: of the request; those that only one way of asking has are read elsewhere.
      base: the model's name.
      limits: of the server.
      lengths: names of the field for the number of tokens.
      default: tokens, where none of them is given.

    Raises:
      ApiError: a 400 that names the field, or a 404 for another model.
    """
    model, source = _source(fields, base)
    counts = {name: fields.whole(name, 0, limits.max_tokens) for name in lengths}
    tokens = next((count for count in counts.values() if count is not None), min(default, limits.max_tokens))
    sampling = SamplingParams(
        temperature=_or(fields.number("temperature", 0, LARGEST), 1.0),
        top_p=_or(fields.number("top_p", 0, 1), 1.0),
        top_k=int(_or(fields.whole("top_k", 0, 2**31 - 1), 0)),
        presence_penalty=_or(fields.number("presence_penalty", -LARGEST, LARGEST), 0.0),
        frequency_penalty=_or(fields.number("frequency_penalty", -LARGEST, LARGEST), 0.0),
        penalty_decay=_or(fields.number("penalty_decay", 0, 1), SamplingParams.penalty_decay),
        max_new_tokens=tokens,
    )
    seed = fields.whole("seed", -(2**63), 2**64)
    session = fields.text("session")
    n = fields.whole("n", 1, limits.max_choices) or 1
    if session is not None:
        checked_name(fields.name("session"), session)
        if n > 1:
            raise invalid("n", "a session takes one answer; leave n out")
    options = fields.get("stream_options")
    usage = False if options is None else bool(Fields(options, "stream_options").flag("include_usage"))
    for name in ("logit_bias", "tools", "functions", "audio", "web_search_options"):
        fields.unsupported(name)
    fields.unsupported("tool_choice", "none", "auto")
    return Wish(
        model,
        source,
        sampling,
        secrets.randbelow(SEEDS) if seed is None else seed % SEEDS,
        fields.texts("stop", MOST_STOPS, LONGEST_STOP),
        n,
        bool(fields.flag("stream")),
        usage,
        None,
        bool(fields.flag("return_state")),
        session,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _source(fields: Fields, base: str) -> tuple[str, Source | None]:
    """(the model's name, the state to begin from, None if nothing says)."""
    model = fields.text("model")
    given = fields.get("state")
    if model is None:
        return base, None if given is None else _state(given)
    name, _, state = model.partition(":")
    if name != base:
        raise ApiError(
            404,
            f"there is no model {shown(model, 100)}; GET /v1/models lists them",
            param="model",
            code="model_not_found",
        )
    if state:
        checked_name("model", state)
    if given is None:
        return model, Source(state or None)
    if state:
        raise invalid("state", f"the model {shown(model, 100)} names a state too; give one of them")
    return model, _state(given)


def _state(given: object) -> Source:
    """The field `state`: a file in base64, or an object that names, mixes or holds states."""
    if isinstance(given, str):
        return Source(data=given)
    fields = Fields(given, "state")
    name, data, mix = fields.text("name"), fields.text("data"), fields.get("mix")
    layout, override = fields.text("layout"), bool(fields.flag("override"))
    fields.finish()
    if sum(one is not None for one in (name, data, mix)) != 1:
        raise invalid("state", "give one of name, data and mix")
    if name is not None:
        return Source(checked_name("state.name", name))
    if data is not None:
        return Source(data=data, layout=layout, override=override)
    return Source(mix=mixture(mix, "state.mix"))


def mixture(table: object, field: str) -> tuple[tuple[str, float], ...]:
    """Reads `{"name": weight, ...}`.

    Raises:
      ApiError: a 400.
    """
    weights = Fields(table, field)
    if not 1 <= len(weights.table) <= MOST_MIXED:
        raise invalid(field, f"give 1 to {MOST_MIXED} states with their weights")
    pairs = []
    for name in weights.table:
        weight = weights.number(checked_name(field, name), -1e6, 1e6)
        if weight is None:
            raise invalid(weights.name(name), "a weight is wanted")
        pairs.append((name, float(weight)))
    return tuple(pairs)
