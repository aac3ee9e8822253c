"""Stop strings: two rules for where a text is cut, and their search in streamed text.

For the text `xabcdy` and the stops `abcd` and `bc`, the rule of lm-evaluation-harness cuts at `x`, before the stop that
starts first (`cut_at_earliest_start`); a stream cuts at `xa`, before the stop that is complete first
(`cut_at_first_complete`), since it sees the text token by token.
"""

from collections.abc import Sequence
from itertools import compress
from typing import NamedTuple

from rwkv7_jax.tokenizer import TextDecoder, Tokenizer
from rwkv7_jax.tokenizer.abilities import decode_bytes_after, encode_after, end_ids, special_tokens


class Spelled(NamedTuple):
    """A text with the special tokens in it spelled out, and which of its characters are shown: not those."""

    text: str = ""
    shown: tuple[bool, ...] = ()

    def plus(self, text: str, shown: bool) -> "Spelled":
        """Returns the text with more after it."""
        return Spelled(self.text + text, self.shown + (shown,) * len(text))

    def before(self, end: int) -> str:
        """Returns the shown text of the first `end` characters."""
        return "".join(compress(self.text[:end], self.shown))

    def after(self, begin: int) -> "Spelled":
        """Returns the rest from a character on."""
        return Spelled(self.text[begin:], self.shown[begin:])

    @property
    def readings(self) -> "list[tuple[str, list[int]]]":
        """The text as it is spelled and as it is shown, with the place of each character and of the end."""
        whole = (self.text, list(range(len(self.text) + 1)))
        if all(self.shown):
            return [whole]
        places = [i for i, shown in enumerate(self.shown) if shown]
        return [whole, (self.before(len(self.text)), [*places, len(self.text)])]


class _Speller:
    """Decodes generated ids run by run, up to one that ends a text."""

    def __init__(self, tokenizer: Tokenizer):
        self.ended = False
        self._decoder = TextDecoder(tokenizer, after=True)
        self._special, self._ends = special_tokens(tokenizer), end_ids(tokenizer)

    def push(self, ids: Sequence[int], before: Spelled) -> Spelled:
        """Returns what was there and what the ids complete."""
        run: list[int] = []
        for i in ids:
            if i in self._ends:
                self.ended = True
                break
            run.append(i)
            if i in self._special:
                before = before.plus(self._decoder.push(run), True).plus(self._special[i], False)
                run = []
        return before.plus(self._decoder.push(run), True) if run else before

    def finish(self, before: Spelled) -> Spelled:
        """Returns what was there and the rest."""
        return before.plus(self._decoder.finish(), True)


class StopText:
    """Decodes generated ids up to the stop string that is complete first, wherever token boundaries fall.

    A special token is not shown; a stop string may spell it out, or be what is shown around it. The end of the text
    with which a stop string may begin is held back. The text follows a prompt: a space that begins it is shown.

    Raises:
      ValueError: an empty stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]):
        if not all(stops):
            raise ValueError("a stop string is empty; leave it out")
        self.hit = False
        """Whether a stop string or an end token (`end_ids`) was met; later ids are ignored."""
        self._stops = tuple(stops)
        self._speller = _Speller(tokenizer)
        self._shown: list[str] = []
        self._held = Spelled()

    @property
    def text(self) -> str:
        """Returns all text that was given out so far."""
        return "".join(self._shown)

    def push(self, ids: Sequence[int]) -> str:
        """Adds token ids; returns the text that can be shown now."""
        if self.hit:
            return ""
        shown = self._scan(self._speller.push(ids, self._held))
        if self._speller.ended and not self.hit:
            shown += self.finish()
            self.hit = True
        return shown

    def finish(self) -> str:
        """Ends the text; returns the rest of it."""
        if self.hit:
            return ""
        shown = self._scan(self._speller.finish(self._held))
        rest = "" if self.hit else self._held.before(len(self._held.text))
        self._held = Spelled()
        self._shown.append(rest)
        return shown + rest

    def _scan(self, found: Spelled) -> str:
        met = [_first_complete(text, self._stops, places) for text, places in found.readings]
        complete = [one for one in met if one is not None]
        self.hit = bool(complete)
        end = min(complete)[1] if complete else len(found.text) - self._undecided(found)
        shown, self._held = found.before(end), Spelled() if self.hit else found.after(end)
        self._shown.append(shown)
        return shown

    def _undecided(self, found: Spelled) -> int:
        """Returns the length of the longest end of the text with which a stop string begins."""
        return max(places[-1] - places[-1 - self._beginning(text)] for text, places in found.readings)

    def _beginning(self, text: str) -> int:
        longest = min(len(text), max(map(len, self._stops), default=1) - 1)
        return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in self._stops)), 0)


def generated_text(tokenizer: Tokenizer, ids: Sequence[int], stops: Sequence[str]) -> str:
    """Returns the text of generated ids before the stop string that starts first, as lm-evaluation-harness cuts.

    Special tokens are not shown; a stop string may spell them out, or be what is shown around them.
    """
    speller = _Speller(tokenizer)
    found = speller.finish(speller.push(ids, Spelled()))
    return found.before(min(places[len(cut_at_earliest_start(text, stops))] for text, places in found.readings))


def cut_at_earliest_start(text: str, stops: Sequence[str]) -> str:
    """Returns the text before the stop string that starts first, as lm-evaluation-harness cuts.

    Example:
      >>> cut_at_earliest_start("xabcdy", ["abcd", "bc"])
      'x'
    """
    return text[: min((at for at in map(text.find, stops) if at >= 0), default=len(text))]


def cut_at_first_complete(text: str, stops: Sequence[str]) -> str:
    """Returns the text before the stop string that is complete first (of several, the longest), as streams cut.

    Example:
      >>> cut_at_first_complete("xabcdy", ["abcd", "bc"])
      'xa'
    """
    return text[: first_complete_stop(text, stops)]


def first_complete_stop(text: str, stops: Sequence[str]) -> int | None:
    """Returns where the stop string begins that is complete first (of several, the longest), or None."""
    met = _first_complete(text, stops, range(len(text) + 1))
    return None if met is None else met[1]


def _first_complete(text: str, stops: Sequence[str], places: Sequence[int]) -> tuple[int, int] | None:
    """(end, begin) of that stop string, as places of its characters."""
    met = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    if not met:
        return None
    end, begin = min(met)
    return places[end - 1] + 1, places[begin]


def cut_tokens(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> list[int]:
    """Returns tokens of `text`, a beginning of what generated `ids` decode to: as many of them as fit, the rest anew.

    Tokens that show nothing at the end (special ones) are left out.
    """

    def decoded(part: Sequence[int]) -> str:
        return decode_bytes_after(tokenizer, part).decode(errors="replace")

    for kept in range(len(ids), -1, -1):
        whole = decoded(ids[:kept])
        if text.startswith(whole):
            while kept and decoded(ids[: kept - 1]) == whole:
                kept -= 1
            cut = [*ids[:kept], *encode_after(tokenizer, text[len(whole) :])]
            if decoded(cut) == text:
                return cut
    return tokenizer.encode(text)
