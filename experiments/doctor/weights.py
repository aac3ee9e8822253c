"""A checkpoint: whether it can be read, is whole, fits the memory and its tokenizer, and predicts text."""

import dataclasses
import itertools
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from experiments import build
from experiments.config.schema import ModelConfig
from experiments.pocket import text as pocket
from experiments.reporting.findings import Finding
from rwkv7_jax import State, checkpoint
from rwkv7_jax.finite import NonFiniteLogitsError
from rwkv7_jax.language_model import LanguageModel

PROSE = (
    "The sun rises in the east and sets in the west. Water boils at one hundred degrees, and it freezes at zero. When "
    "people meet in the morning, they say hello to each other and ask how the other person is."
)
DOUBTFUL = 0.75
"""Part of log(vocabulary), the loss of guessing, from which on a model knows little of the text."""
NO_MODEL = {
    b"version https://git-lfs": "is a pointer of Git LFS and not the file itself; fetch it: git lfs pull",
    b"<": "is a web page and not a checkpoint; download the file itself",
    b"{": "is JSON text and not a checkpoint; give the file with the weights",
}
"""First bytes of files that were saved in place of a checkpoint."""


@dataclasses.dataclass(frozen=True)
class Looked:
    """What was found at a checkpoint."""

    lines: list[str]
    findings: list[Finding]
    model: LanguageModel | None = None
    own: State | None = None
    """The model's state after a text; None if it could not read one."""
    numbers: Mapping[str, object] = dataclasses.field(default_factory=dict)


def look(name: str, tokenizer: str, free_memory: int) -> Looked:
    """Looks at a checkpoint.

    Args:
      name: of an embedded model, or a path.
      tokenizer: as `ModelConfig.tokenizer`.
      free_memory: bytes that the model may fill, on a CPU.
    """
    try:
        path = build.checkpoint_path(name)
        found = _warned(path)
    except (ValueError, OSError) as error:
        return Looked([], [_fault(f"{_instead(Path(name).expanduser()) or error}")])
    report, warned = found
    c = report.config
    lines = [
        f"checkpoint: {name}, {report.format}, RWKV-7 of {report.parameter_count / 1e6:.2f}M parameters in "
        f"{', '.join(report.dtypes)}, {c.n_layer} layers x {c.n_embd}, {c.n_head} heads of {c.head_size}, vocabulary "
        f"{c.vocab_size}, hash {report.weights_hash[:16]}"
    ]
    numbers: dict[str, object] = {"weights_hash": report.weights_hash, "parameters": report.parameter_count}
    findings = [_fault(f"{text}; take another copy") for text in warned]
    needed = 4 * report.parameter_count
    if needed > free_memory:
        sizes = f"{needed / 2**30:.1f} GiB in float32, and {free_memory / 2**30:.1f} GiB are free"
        findings.append(_fault(f"{name} needs {sizes}; use --model.quantize int8 or another machine"))
    if findings:
        return Looked(lines, findings, numbers=numbers)
    try:
        lm = build.load_model(ModelConfig(checkpoint=name, tokenizer=tokenizer))
    except (ValueError, OSError) as error:
        return Looked(lines, [_fault(f"{error}")], numbers=numbers)
    return _read(lm, name, lines, numbers)


def _warned(path: Path) -> tuple[checkpoint.ImportReport, list[str]]:
    """The report of a checkpoint, and what its loading warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = checkpoint.load(path, lazy=True).report
    return report, [str(one.message) for one in caught if "NaN" in str(one.message)]


def _instead(path: Path) -> str | None:
    """What a file is in truth, by its first bytes; None: maybe a checkpoint."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        begin = file.read(64).lstrip()
    if not begin:
        return f"{path} is empty; download it again"
    return next((f"{path} {what}" for first, what in NO_MODEL.items() if begin.startswith(first)), None)


def _read(lm: LanguageModel, name: str, lines: list[str], numbers: dict[str, object]) -> Looked:
    """Lets the model read plain texts."""
    guess, least, own = math.log(lm.config.vocab_size), math.inf, None
    for text in texts():
        try:
            loss, own = text_loss(lm, text)
        except NonFiniteLogitsError as error:
            return Looked(lines, [_fault(f"{name}: {error}; take another copy")], lm, numbers=numbers)
        least = min(least, loss)
        if least < DOUBTFUL * guess:
            break
    told = f"{least:.3f} nats a token on a plain text, guessing has {guess:.3f}"
    lines.append(f"checkpoint: {told}")
    numbers |= {"loss": least, "loss_of_guessing": guess}
    findings = []
    if least >= 0.99 * guess:
        findings.append(_fault(f"{name}: {told}: no better than a guess; is it trained, and is the tokenizer its own?"))
    elif least >= DOUBTFUL * guess:
        findings.append(Finding("checkpoint", f"{name}: {told}: it knows little of this text", fault=False))
    return Looked(lines, findings, lm, own, numbers)


def texts() -> Iterator[str]:
    """Yields the plain texts that a model should know something of: prose, and the text of the embedded models."""
    yield PROSE
    yield " ".join(itertools.islice(pocket.documents(0), 3))[:400]


def text_loss(lm: LanguageModel, text: str, state: State | None = None) -> tuple[float, State]:
    """Returns (mean loss of a text's tokens after the first in nats, state after it).

    Raises:
      NonFiniteLogitsError: the model, or the state, gives logits that are not finite.
    """
    ids = lm.encode(text)
    logits, after = lm.logits(ids, state=state)
    rows = np.asarray(logits, np.float64)[:-1]
    top = rows.max(-1)
    nll = top + np.log(np.exp(rows - top[:, None]).sum(-1)) - rows[np.arange(len(rows)), ids[1:]]
    return float(nll.mean()), after


def _fault(text: str) -> Finding:
    return Finding("checkpoint", text)
