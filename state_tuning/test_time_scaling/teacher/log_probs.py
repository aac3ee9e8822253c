"""The log-probabilities in a server's answer: of a given text's tokens, of the likeliest ones, and of yes and no."""

import math
from collections.abc import Sequence

from state_tuning.test_time_scaling.teacher import raw_tokens
from state_tuning.test_time_scaling.teacher.echo import NotEchoed, tokens_of_sample
from state_tuning.test_time_scaling.teacher.json_answer import MalformedAnswer, UnusableAnswer, log_probability, part
from state_tuning.test_time_scaling.teacher.listed import ENDS, Lists

NOTHING = "the server gives no log-probabilities"
LLAMA_CPP = ", or llama.cpp's and api llama.cpp"


def echoed(choice: object, prompt: str, sample: str, ended: bool = False) -> tuple[float, int]:
    """(mean log-probability, number) of the echoed tokens in the sample; one across its beginning is left out.

    If the sample has ended and the server ends there too, its end token counts.

    Raises:
      NotEchoed: the tokens are not those of the request.
      UnusableAnswer: there are no log-probabilities.
      MalformedAnswer: they are not one for each token.
    """
    tokens, values, inside = _inside(choice, prompt, sample)
    end = inside.stop if ended and tokens[inside.stop : inside.stop + 1] and tokens[inside.stop] in ENDS else None
    # The very first token follows nothing, so that it alone has no log-probability.
    chosen = [values[i] for i in inside if values[i] is not None or any(value is not None for value in values[:i])]
    if not chosen:
        raise NotEchoed("no log-probability inside the chain")
    nats = [log_probability(value) for value in (chosen if end is None else [*chosen, values[end]])]
    return sum(nats) / len(nats), len(nats)


def listed(choice: object, prompt: str, sample: str) -> Lists | None:
    """The likeliest tokens at each token of the sample and after it; None without them.

    Raises:
      as `echoed`.
    """
    tokens, values, inside = _inside(choice, prompt, sample)
    rows = log_probabilities(choice).get("top_logprobs")
    chosen = [*inside, inside.stop]
    if not isinstance(rows, list) or len(rows) != len(tokens) or inside.stop >= len(tokens):
        return None
    likely = [rows[i] for i in chosen]
    if not all(isinstance(row, dict) for row in likely) or any(values[i] is None for i in chosen):
        return None
    lists = [{token: log_probability(value) for token, value in row.items()} for row in likely]
    return Lists([tokens[i] for i in chosen], [log_probability(values[i]) for i in chosen], lists)


def _inside(choice: object, prompt: str, sample: str) -> tuple[list[str], list[object], range]:
    """The echoed tokens, their log-probabilities, and the places of the sample's."""
    found = log_probabilities(choice)
    tokens, values = found.get("tokens"), found.get("token_logprobs")
    if not isinstance(tokens, list) or not isinstance(values, list):
        raise UnusableAnswer(f"{NOTHING} of the prompt; scores of a given text need a server with `echo`{LLAMA_CPP}")
    if len(tokens) != len(values) or not all(isinstance(token, str) for token in tokens):
        raise MalformedAnswer("tokens and log-probabilities that do not belong together")
    return tokens, values, tokens_of_sample(tokens, prompt, sample)


def log_probabilities(choice: object) -> dict[str, object]:
    """The object that holds them. Raises: UnusableAnswer without one."""
    found = choice.get("logprobs") if isinstance(choice, dict) else None
    if not isinstance(found, dict):
        raise UnusableAnswer(f"{NOTHING}; another server, or a setting of this one, may")
    return found


def first_token(choice: object) -> dict[str, float]:
    """Log-probabilities of the most likely first tokens of an answer."""
    found = log_probabilities(choice)
    rows = found.get("content") if "content" in found else found.get("top_logprobs")
    if not isinstance(rows, list) or not rows:
        raise UnusableAnswer(f"{NOTHING} of its answer's first token; another server, or a setting of this one, may")
    if "content" in found:
        shown = part(rows[0], "top_logprobs")
        shown = shown if isinstance(shown, list) else []
        alternatives = [(part(row, "token"), part(row, "logprob")) for row in shown]
    else:
        alternatives = list(rows[0].items()) if isinstance(rows[0], dict) else []
    likely = {token: log_probability(value) for token, value in alternatives if isinstance(token, str)}
    if not likely:
        raise UnusableAnswer(f"{NOTHING} of other first tokens (`top_logprobs`); another server, or a setting, may")
    return likely


def yes_or_no(likely: dict[str, float], yes: str, no: str) -> float:
    """log p(yes) - log p(no), case and spaces aside; NaN if none is listed.

    Of two words, the one that is not listed counts as the least likely listed one.
    """
    listed = {token: log_probability(value) for token, value in likely.items()}
    floor = min(listed.values())

    def mass(word: str) -> float | None:
        values = [value for token, value in listed.items() if raw_tokens.word(token) == word.strip().lower()]
        return _logsumexp(values) if values else None

    for_yes, for_no = mass(yes), mass(no)
    if for_yes is None and for_no is None:
        return math.nan
    return (floor if for_yes is None else for_yes) - (floor if for_no is None else for_no)


def _logsumexp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))
