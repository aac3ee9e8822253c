"""Finds the tokens of a sample among those that a server echoes, by the text that they spell.

A server's own positions (`text_offset`) count its beginning-of-text token, or characters that it could not show. So the
request's bytes are laid along the tokens instead: a token is known by the bytes that it decodes to.
"""

from collections.abc import Sequence

from state_tuning.test_time_scaling.teacher.foreign_text import quoted
from state_tuning.test_time_scaling.teacher.raw_tokens import BLANK, byte_level, escaped_bytes, is_bare_id

BEFORE = 4
"""Tokens that a server may put before the text."""
AFTER = 64
"""Tokens that it may write after it, with those that show no text."""
WIDEST = 64
"""Most places where a token may begin, if tokens before it show parts of characters."""
LONGEST = 64
"""Characters of a token with parts of characters."""
LONGEST_ID = 16
"""Bytes of a token that is shown as its id alone."""
PART = "\N{REPLACEMENT CHARACTER}"
UNLIKE = "the tokens with log-probabilities do not spell prompt and chain"
OUTSIDE = -1
"""The place of a token before the text."""
READINGS = ("replace", "empty", "ignore", "bytes")
"""How servers show parts of characters: as U+FFFD; as tokens without text; left out, wherever they are; or as the
symbols of a byte-level vocabulary, which they show instead of all text."""


class NotEchoed(ValueError):
    """The tokens do not spell the request, or not in one way."""


def tokens_of_sample(tokens: Sequence[str], prompt: str, sample: str) -> range:
    """Returns the positions of the sample's tokens; one across its beginning is left out.

    Args:
      tokens: as a server shows them; parts of characters as U+FFFD, as nothing, as `<0xE2>`
        or `bytes:\\xe2`; or all of them in the spelling of a byte-level vocabulary.
      prompt: the first part of the request's text.
      sample: the rest of it, not empty.

    Raises:
      NotEchoed: they do not spell prompt and sample, or leave open where the sample begins.

    Example:
      >>> tokens_of_sample(["<s>", "Q", ":", " 4", "."], "Q:", " 4")
      range(3, 4)
    """
    text, begin = (prompt + sample).encode(errors="replace"), len(prompt.encode(errors="replace"))
    ids = any(map(is_bare_id, tokens[: len(text) + BEFORE + AFTER]))
    for reading in READINGS:
        places = _places(tokens, text, reading)
        ends = [i for i, at in enumerate(places) if len(text) in at]
        sure = not ids or sum(i in ends for i in (len(tokens) - 1, len(tokens))) == 1
        if ends and sure:
            end = next((i for i in (len(tokens) - 1, len(tokens)) if i in ends), ends[-1])
            try:
                return range(_first(tokens, text, reading, places[: end + 1], begin), end)
            except NotEchoed:
                if not ids:
                    raise
    if ids:
        raise NotEchoed(f"{UNLIKE}: ids instead of tokens (token_id:...); let the server show their text")
    shown = quoted("".join(tokens[: len(text)]), limit=60)
    raise NotEchoed(f"{UNLIKE}: {shown}")


def _places(tokens: Sequence[str], text: bytes, reading: str) -> list[set[int]]:
    """Where each token may begin, read from the front; the last entry is where the last one may end."""
    places = [{OUTSIDE, 0}]
    for i, token in enumerate(tokens[: len(text) + BEFORE + AFTER]):
        found: set[int] = set()
        for place in places[-1]:
            found.update(_ends(token, text, place, reading, i))
        if len(found) > WIDEST:
            break
        places.append(found)
    return places


def _first(tokens: Sequence[str], text: bytes, reading: str, places: Sequence[set[int]], begin: int) -> int:
    """The first token from `begin` on, of those ways through the places that reach the end of the text."""
    reached, first = {len(text)}, len(places) - 1
    for i in range(len(places) - 2, -1, -1):
        reached = {place for place in places[i] if reached.intersection(_ends(tokens[i], text, place, reading, i))}
        inside = [place >= begin for place in reached]
        if any(inside) and not all(inside):
            raise NotEchoed("the tokens of partial characters leave open where the chain begins")
        first = i if all(inside) else first
    return first


def _ends(token: str, text: bytes, place: int, reading: str, position: int) -> set[int]:
    """Where a token that begins at `place` may end."""
    if place == OUTSIDE:
        return {OUTSIDE, 0} if position < BEFORE else set()
    if place >= len(text):
        return set()
    part = escaped_bytes(token)
    if part is not None and text.startswith(part, place):
        return {place + len(part)}
    if is_bare_id(token) and not text.startswith(token.encode(), place):
        return set(range(place + 1, min(place + LONGEST_ID, len(text)) + 1))
    if reading == "bytes":
        raw = byte_level(token)
        shown = [] if raw is None else [raw, raw.removeprefix(b" ")] if place == 0 else [raw]
        return {place + len(one) for one in shown if one and text.startswith(one, place)}
    whole = {place + len(shown) for shown in _spellings(token, place) if shown and text.startswith(shown, place)}
    if len(token) > LONGEST or (PART not in token if reading == "replace" else token and reading == "empty"):
        return whole
    errors, size, parts = "ignore", len(token.encode(errors="replace")), token.count(PART)
    least, most = size, size + 6
    if reading == "replace":
        errors, least, most = "replace", size - 2 * parts, size
    ends = range(place + least, min(place + most, len(text)) + 1)
    return whole | {end for end in ends if text[place:end].decode(errors=errors) == token}


def _spellings(token: str, place: int) -> list[bytes]:
    """What a token may stand for: itself; with the blank of SentencePiece; at the very beginning without it."""
    found = [token, token.replace(BLANK, " ")]
    if place == 0:
        found += [shown[1:] for shown in found if shown.startswith(" ")]
    return [shown.encode(errors="replace") for shown in found]
