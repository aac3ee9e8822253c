"""Log-probabilities of a given text from llama.cpp's server, which echoes no prompt: it is made to write the text.

The server cuts the text into its tokens (`/tokenize`), and a grammar admits these tokens alone. What it then lists for
each token is the model's own distribution, before the grammar. One request reads all of a text.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from state_tuning.test_time_scaling.teacher.echo import NotEchoed
from state_tuning.test_time_scaling.teacher.json_answer import Json, MalformedAnswer, log_probability, part
from state_tuning.test_time_scaling.teacher.listed import ENDS, Lists
from state_tuning.test_time_scaling.teacher.log_probs import log_probabilities

OTHER = "the server does not write what a grammar of tokens asks for; api llama.cpp needs a recent llama-server"


class Piece(NamedTuple):
    """A token of the server."""

    id: int
    spelt: bytes


def pieces(answer: Json) -> list[Piece]:
    """Returns the tokens in an answer of `/tokenize`.

    Args:
      answer: `{"tokens": [{"id", "piece"}]}`; a piece is a string, or bytes where it holds part of a character.

    Raises:
      MalformedAnswer: it has none.
    """
    rows = part(answer, "tokens")
    if not isinstance(rows, list):
        raise MalformedAnswer("the tokens are no list")
    return [Piece(_id(row), _spelt(part(row, "piece"))) for row in rows]


def grammar(tokens: Sequence[Piece], text: str) -> str:
    """Returns a grammar (GBNF) that admits the tokens of a text alone.

    A character that takes several tokens is admitted as text: grammars know no token of a part of one.

    Raises:
      NotEchoed: they do not spell the text; a server may normalise it, or drop control characters.

    Example:
      >>> grammar([Piece(7, b" 4"), Piece(8, bytes([0xC3])), Piece(9, bytes([0xA9]))], " 4" + chr(233))
      'root ::= <[7]> "\\\\U000000E9"'
    """
    if b"".join(token.spelt for token in tokens) != text.encode(errors="replace"):
        raise NotEchoed("the server's tokens do not spell the chain")
    parts, waiting = list[str](), b""
    for token in tokens:
        waiting += token.spelt
        try:
            shown = waiting.decode()
        except UnicodeDecodeError:
            continue
        whole = waiting == token.spelt
        parts.append(f"<[{token.id}]>" if whole else '"' + "".join(f"\\U{ord(char):08X}" for char in shown) + '"')
        waiting = b""
    return "root ::= " + " ".join(parts)


def written(choice: object, tokens: Sequence[Piece]) -> Lists:
    """Returns what the server lists at each token of the text, and at the end token after it.

    Where a character takes several tokens the server shows the last one's probability alone: it is NaN here.

    Args:
      choice: of the answer to a request with the grammar of these tokens.
      tokens: of the text.

    Raises:
      NotEchoed: it wrote another text.
      UnusableAnswer: there are no log-probabilities.
      MalformedAnswer: they are not what was asked for.
    """
    rows = log_probabilities(choice).get("content")
    if not isinstance(rows, list) or not rows:
        raise NotEchoed(OTHER)
    whole, starts, at = b"".join(token.spelt for token in tokens), dict[int, Piece](), 0
    for token in tokens:
        starts[at] = token
        at += len(token.spelt)
    spelt = [_spelt_of(row) for row in rows]
    ended = not spelt[-1]
    if b"".join(spelt) != whole:
        raise NotEchoed(OTHER)
    end = _id(rows[-1]) if ended else None
    found, at = Lists([], [], []), 0
    for row, text in zip(rows, spelt, strict=True):
        known = not text or starts.get(at) == Piece(_id(row), text)
        found.tokens.append(_shown(text))
        found.log_q.append(log_probability(part(row, "logprob")) if known else math.nan)
        found.likely.append(_likely(row, end) if known else {})
        at += len(text)
    return found if ended else Lists([*found.tokens, ""], [*found.log_q, math.nan], [*found.likely, {}])


def mean(lists: Lists, ended: bool) -> tuple[float, int]:
    """Returns the mean log-probability of the text's known tokens, its end included if it has ended, and their number.

    Raises:
      NotEchoed: none is known.
    """
    values = lists.log_q if ended else lists.log_q[:-1]
    known = [value for value in values if not math.isnan(value)]
    if not known:
        raise NotEchoed("no log-probability inside the chain")
    return sum(known) / len(known), len(known)


def _likely(row: object, end: int | None) -> dict[str, float]:
    """The likeliest tokens instead of one; special tokens, which show no text, but for the end."""
    shown = part(row, "top_logprobs")
    found = dict[str, float]()
    for one in shown if isinstance(shown, list) else []:
        text, id_ = _spelt_of(one), _id(one)
        if text or id_ == end:
            found[_shown(text)] = log_probability(part(one, "logprob"))
    return found


def _shown(spelt: bytes) -> str:
    """A token as `Lists` spells it: its text, its bytes if it has parts of characters, or the end's sign."""
    try:
        return spelt.decode() or ENDS[0]
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelt)


def _spelt_of(row: object) -> bytes:
    """The bytes of a token with its log-probability."""
    raw = part(row, "bytes")
    return _spelt(part(row, "token") if raw is None else raw)


def _spelt(value: object) -> bytes:
    if isinstance(value, str):
        return value.encode(errors="replace")
    if isinstance(value, list) and all(isinstance(byte, int) and 0 <= byte < 256 for byte in value):
        return bytes(value)
    raise MalformedAnswer("a token that is neither text nor bytes")


def _id(row: object) -> int:
    found = part(row, "id")
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < 2**31:
        raise MalformedAnswer("a token without a number")
    return found
