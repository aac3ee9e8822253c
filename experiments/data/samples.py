"""A record as a prompt without its answer, and what is wanted after it."""

from experiments.data.jsonl import Pair, exchanges_of

LONGEST, WANTED = 100, 200
"""Characters of the beginning of a plain text that are shown, and of what follows."""


def prompt_and_answer(pair: Pair) -> tuple[str, str]:
    """Returns (prompt, wanted): of a conversation its first exchange, of another text its beginning and what follows.

    Args:
      pair: a record; never all of its text is the prompt, unless it has one character.

    Example:
      >>> prompt_and_answer(Pair("", "User: 2+2?\\n\\nAssistant: 4"))
      ('User: 2+2?\\n\\nAssistant:', ' 4')
      >>> prompt_and_answer(Pair("", "one two three four"))
      ('one two', ' three four')
    """
    if pair.prompt:
        return pair.prompt, pair.completion
    text = pair.completion
    answered = [part for part in exchanges_of(pair) if part.answer]
    if answered:
        return answered[0].context, answered[0].answer
    cut = max(1, min(LONGEST, len(text) // 2))
    space = text.rfind(" ", 0, cut)
    cut = space if text[:space].strip() and space > 0 and text[cut] != " " else cut
    return text[:cut], text[cut : cut + WANTED]
