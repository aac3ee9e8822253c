"""State tuning of one model on a list of examples, in one call."""

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import optax
from jaxtyping import PyTree

from rwkv7_jax.bucketing import padded_length
from rwkv7_jax.checkpoint.states import TunedState
from rwkv7_jax.functional import Params
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.state import State
from rwkv7_jax.tokenizer import Tokenizer
from state_tuning.core import non_finite, train
from state_tuning.core.conversations import Learn, encode_record, from_messages
from state_tuning.core.objective import Batch, Example, boundary_merges, collate
from state_tuning.core.train import Method, Metrics, TuneConfig
from state_tuning.dbp.correlations import make_correlate

Text = str | Sequence[str] | Mapping[str, object]
"""A plain text, a (prompt, completion) pair, or a dict {"prompt", "completion"}, {"text"} or {"messages"}."""

FORMS = (("prompt", "completion"), ("text",), ("messages",))
"""Keys of an example that is a dict; it has those of one form."""


class TuneResult(NamedTuple):
    """A tuned state, and how it was reached."""

    state: TunedState
    """The unbatched float32 state with its base model's hash and settings: `.save(path)` writes it."""
    losses: list[float]
    """Of each step, nats per token."""
    steps: int
    """Updates."""
    validation_loss: float | None
    """At the end, nats per token; None without validation examples."""

    def __repr__(self) -> str:
        held_out = "" if self.validation_loss is None else f", validation loss {self.validation_loss:.4g}"
        return f"TuneResult({self.steps} steps, loss {self.losses[0]:.4g} to {self.losses[-1]:.4g}{held_out})"


def tune(
    lm: LanguageModel,
    examples: Sequence[Text],
    method: Method | None = None,
    *,
    steps: int = 200,
    learning_rate: float = 1.0,
    batch_size: int = 16,
    seed: int = 0,
    max_length: int = 512,
    learn: Learn = "answers",
    validation: Sequence[Text] | None = None,
    optimizer: optax.GradientTransformation | None = None,
    callback: Callable[[int, Metrics], object] | None = None,
) -> TuneResult:
    """Tunes an initial state of a frozen model on examples.

    The loss is the cross-entropy of completions: of a conversation its answers, of another plain text all of it. Same
    seed, same numbers.

    Args:
      lm: the model; its weights stay as they are.
      examples: (prompt, completion) pairs, dicts {"prompt", "completion"}, {"text"} or {"messages"}, or plain texts.
      method: what is trained; None: `standard(lm)`.
      steps: updates.
      learning_rate: peak step size of Adam, for the default optimiser; `rwkv7 sweep` finds the best for some data.
      batch_size: sequences a step; all examples if there are fewer.
      seed: of the order of the examples.
      max_length: tokens of a sequence; a longer prompt loses its oldest tokens, then the completion its end, with a
        warning; a longer text is cut into windows, a conversation between its exchanges.
      learn: what is learnt of conversations (`User: ...`, an empty line, `Assistant: ...`), "answers" or "all".
      validation: held-out examples, whose loss is measured at the end.
      optimizer: any optax transform instead of Adam with warm-up and cosine decay; `decorrelated(...)` and
        `whitened(...)` get the correlations that they learn from.
      callback: called after each step with its number (from 1) and its metrics, see `make_train_step`.

    Returns:
      The tuned state and the losses.

    Raises:
      ValueError: one line, for examples or settings that cannot be used, or a method that trains no state or that of
        another model.
      TypeError: `method` is not a `Method`.
      NonFiniteError: too many steps in a row with a non-finite loss or gradient.
    """
    if batch_size < 1:
        raise ValueError(f"tune: batch_size is {batch_size}, it must be at least 1")
    config = TuneConfig(learning_rate=learning_rate, steps=steps, warmup=min(TuneConfig.warmup, steps))
    method = method or train.standard(lm, config)
    start, full = _start(lm, method)
    encode = partial(_encoded, lm.tokenizer, max_length=max_length, learn=learn)
    encoded = encode(examples, what="example")
    held_out = [] if validation is None else encode(validation, what="validation example")
    length = padded_length(max(len(example.tokens) for example in [*encoded, *held_out]) - 1)
    optimizer = optax.with_extra_args_support(optimizer or train.make_optimizer(config))
    step = train.make_train_step(lm.model, optimizer, config, method, make_correlate(lm.model, method))
    tuned, losses = train.init(optimizer, start), []
    for index, batch in enumerate(itertools.islice(_batches(encoded, length, batch_size, seed), steps), 1):
        tuned, metrics = step(lm.params, tuned, batch)
        non_finite.check_finite(metrics, index)
        losses.append(float(metrics["loss"]))
        if callback:
            callback(index, metrics)
    evaluate = train.make_eval_step(lm.model, config, method)
    final = _loss(evaluate, lm.params, tuned.trainable, held_out, length, batch_size)
    settings = {"learning_rate": learning_rate, "steps": steps, "batch_size": batch_size, "seed": seed}
    settings, metrics = {**settings, "max_length": max_length}, {"loss": losses[-1], "validation_loss": final}
    result = lm.tuned_state(full(tuned.trainable), "tune", config=settings, metrics=metrics)
    return TuneResult(result, losses, steps, final)


def _start(lm: LanguageModel, method: Method) -> tuple[PyTree, Callable[[PyTree], State]]:
    """(the method's trainable tree at the start, its `full`). Raises: TypeError, ValueError in one line."""
    if not isinstance(method, Method):
        hint = "; an optax transform is given as optimizer=" if hasattr(method, "update") else ""
        raise TypeError(f"tune: method must be a Method such as standard(lm), not {type(method).__name__}{hint}")
    if method.full is None:
        raise ValueError("tune: the method trains no initial state (its `full` is None); use make_train_step")
    start = method.init()
    found, wanted = method.full(start).att_shift.shape, lm.zero_state().att_shift.shape
    if found != wanted:
        raise ValueError(f"tune: the method is for a model of {found} layers and width, this one has {wanted}")
    return start, method.full


def _encoded(tokenizer: Tokenizer, texts: Sequence[Text], *, max_length: int, learn: Learn, what: str) -> list[Example]:
    """Token examples; warns of those cut or sharing a token with their prompt. Raises: ValueError in one line."""
    if isinstance(texts, str) or not len(texts):
        raise ValueError(f"tune: there is no {what}; give a list of (prompt, completion) pairs or of texts")
    found, merged = list[Example](), 0
    for index, text in enumerate(texts):
        try:
            prompt, completion, answers = _pair(text)
            found.extend(encode_record(tokenizer, prompt, completion, max_length, learn, answers))
            merged += bool(prompt) and boundary_merges(tokenizer, prompt, completion)
        except ValueError as error:
            raise ValueError(f"tune: {what} {index} {error}") from None
    if cut := [len(example.tokens) + example.truncated for example in found if example.truncated]:
        longest = f"the longest has {max(cut)} tokens"
        warnings.warn(f"tune: max_length {max_length} cuts {len(cut)} of {len(found)} {what}s; {longest}", stacklevel=3)
    if merged:
        shared = "the end of the prompt and the beginning of the completion would be one token if they were one text"
        advice = "begin the completion with the space or line end that ends the prompt"
        warnings.warn(f"tune: in {merged} of {len(texts)} {what}s {shared}; {advice}", stacklevel=3)
    return found


def _pair(text: Text) -> tuple[str, str, tuple[tuple[int, int], ...] | None]:
    """(prompt, completion, places of the answers in messages), an empty prompt for a plain text.

    Raises:
      ValueError: in one line.
    """
    if isinstance(text, str):
        return "", text, None
    parts: list[object] = []
    if not isinstance(text, Mapping):
        parts = list(text)
    elif forms := [form for form in FORMS if any(text.get(name) is not None for name in form)]:
        if len(forms) > 1:
            raise ValueError(f"has {' and '.join(map(repr, (form[-1] for form in forms)))}; give one of them")
        if forms[0] == ("messages",):
            talk = from_messages(text["messages"])
            return "", talk.text, talk.answers
        parts = ["", text["text"]] if forms[0] == ("text",) else [text.get(name) for name in forms[0]]
    match parts:
        case [str(prompt), str(completion)]:
            return prompt, completion, None
    raise ValueError(
        'is neither a text, nor (prompt, completion), nor {"prompt", "completion"}, nor {"text"}, nor {"messages"}'
    )


def _batches(examples: Sequence[Example], length: int, batch_size: int, seed: int) -> Iterator[Batch]:
    """Endless batches of one shape: permutation after permutation of the examples."""
    rng, size = np.random.default_rng(seed), min(batch_size, len(examples))
    order = itertools.chain.from_iterable(rng.permutation(len(examples)) for _ in itertools.count())
    while True:
        yield collate([examples[i] for i in itertools.islice(order, size)], length)


def _loss(
    evaluate: train.EvalStep, params: Params, trainable: PyTree, examples: list[Example], length: int, batch_size: int
) -> float | None:
    """Mean loss of the examples in nats per token; None without examples."""
    if not examples:
        return None
    batches = [collate(examples[i : i + batch_size], length, batch_size) for i in range(0, len(examples), batch_size)]
    sums = [evaluate(params, trainable, batch) for batch in batches]
    return float(sum(float(nll) for nll, _ in sums) / sum(float(count) for _, count in sums))
