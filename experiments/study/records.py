"""The records of cells.jsonl and rates.jsonl, and the results that follow from them."""

from collections.abc import Mapping
from typing import Literal, TypeAlias, TypedDict

from experiments.config.schema import Json
from experiments.reporting.accuracy_curve import CurvePoint, Gain, Problem
from experiments.reporting.statistics import Interval

Measure: TypeAlias = Literal["accuracy", "loss"]


class Header(TypedDict):
    """What every record begins with."""

    key: str
    row: str
    """The method of the table."""
    task: str
    seed: int


class ItemScores(TypedDict):
    """What a state scores on held-out records, a value each."""

    nll: list[float]
    """Summed completion NLL, nats."""
    tokens: list[int]
    right: list[float]


class MeasuredRecord(Header, ItemScores):
    """A state that was not trained in this cell."""

    kind: Literal["measured"]


class TunedRecord(Header, ItemScores):
    """A tuned state."""

    kind: Literal["tuned"]
    rate: float
    steps: int
    skipped: int
    seconds: float
    """Per step."""
    stability: str
    conditions: list[tuple[int, list[float]]]
    """(step, log10 of the condition number by layer)."""
    train: list[float]
    """Loss of each step's batch, nats per token."""


class TimingRecord(Header):
    """Seconds per step by method and benchmark."""

    kind: Literal["timing"]
    seconds: dict[str, dict[str, float]]


class ObserverQuality(TypedDict):
    """R^2 by layer of the larger model, and two KLs in nats per token."""

    r2: list[float]
    kl_logits: float
    kl_state: float


class ObserverRecord(Header):
    """How well the larger model is observed, without and with corrections."""

    kind: Literal["observer"]
    plain: ObserverQuality
    corrected: ObserverQuality


class ScaledRecord(Header):
    """The answers of test-time scaling."""

    kind: Literal["scaled"]
    problems: list[Problem]


class QueriesRecord(Header):
    """State -> "q" or "psi" -> norms by layer and token."""

    kind: Literal["queries"]
    norms: dict[str, dict[str, list[list[float]]]]


class SpectraRecord(Header):
    """Input -> how it is spread over directions."""

    kind: Literal["spectra"]
    spectra: dict[str, dict[str, float]]


CellRecord: TypeAlias = (
    MeasuredRecord | TunedRecord | TimingRecord | ObserverRecord | ScaledRecord | QueriesRecord | SpectraRecord
)


class RateRecord(Header):
    """One try of the search for learning rates."""

    kind: Literal["rate"]
    rate: float
    loss: float
    """Infinite where tuning diverges."""


ByTask: TypeAlias = dict[str, Interval]
"""Benchmark (or "mean") -> interval."""
ByMethod: TypeAlias = dict[str, ByTask]
ByKind: TypeAlias = dict[str, ByMethod]
"""Benchmark -> method -> kind of question -> accuracy."""


class ScalingResult(TypedDict):
    """Test-time scaling on one benchmark."""

    points: list[CurvePoint]
    differences: list[Gain]


class ItemRecord(TypedDict):
    """What one state scores on held-out records, in the order of the records."""

    row: str
    task: str
    seed: int
    right: str
    """A digit, 0 or 1, for each record."""
    nll: list[float]
    tokens: list[int]


class Summary(TypedDict):
    """All numbers of a table."""

    tasks: list[str]
    seeds: list[int]
    accuracy: ByMethod
    accuracy_against: dict[str, ByMethod]
    """Other method -> paired differences from it."""
    loss: ByMethod
    loss_against: dict[str, ByMethod]
    items: dict[str, dict[str, list[int]]]
    """Method -> benchmark -> [seeds, items]."""
    scaling: dict[str, ScalingResult]
    conditions: dict[str, list[tuple[int, float, float, float]]]
    """Method -> (step, mean, least, largest over cells) of log10 of the condition number."""
    seconds: Mapping[str, Mapping[str, float]]
    steps: dict[str, int]
    rates: dict[str, dict[str, float]]
    half_lives: dict[str, dict[str, list[int]]]
    """Benchmark -> state -> tokens by layer."""
    spectra: dict[str, dict[str, float]]
    observer: dict[str, ObserverQuality]
    claims: list[str]


class TableResults(Summary):
    """results.json: a summary with the settings that it comes from."""

    config: dict[str, Json]
    command: str
    protocol: str
    values: list[ItemRecord]
    kinds: ByKind


def differences(body: Summary, measure: Measure) -> dict[str, ByMethod]:
    """Returns other method -> method -> paired differences of a measure."""
    return body["accuracy_against"] if measure == "accuracy" else body["loss_against"]
