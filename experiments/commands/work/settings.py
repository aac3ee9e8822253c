"""Settings of a task by its name, and token ids, from words."""

from collections.abc import Sequence

from experiments.config.overrides import UsageError

NONE = "none"


def by_task(texts: Sequence[str]) -> dict[str, str]:
    """TASK=VALUE texts as a dict.

    Raises:
      UsageError: a text has another form.
    """
    for text in texts:
        if "=" not in text:
            raise UsageError(f"{text!r} is not understood: write TASK=VALUE, as in mmlu=5")
    return dict(text.split("=", 1) for text in texts)


def shots(texts: Sequence[str], tasks: Sequence[str]) -> dict[str, int]:
    """Examples of each task: N is for all that are not named.

    Raises:
      UsageError: a text is neither N nor TASK=N.
    """
    common = [text for text in texts if text.strip().isdigit()]
    named = {name: number("--shots", value) for name, value in by_task([t for t in texts if t not in common]).items()}
    return dict.fromkeys(tasks, int(common[-1])) | named if common else named


def prefix_tokens(text: str) -> tuple[int, ...] | None:
    """Token ids before each prompt; None: those of the protocol.

    Raises:
      UsageError: they are not whole numbers.
    """
    if text == "auto":
        return None
    return () if text == NONE else tuple(number("--prefix_token", word) for word in text.split(","))


def number(option: str, text: str) -> int:
    """A whole number.

    Raises:
      UsageError: it is something else.
    """
    if not text.strip().isdigit():
        raise UsageError(f"{option}: {text!r} is not a whole number")
    return int(text)
