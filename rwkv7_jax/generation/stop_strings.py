"""Stop strings: two rules for where a text is cut, and their search in streamed text.

For the text `xabcdy` and the stops `abcd` and `bc`, the rule of lm-evaluation-harness cuts at `x`, before the stop that
starts first (`cut_at_earliest_start`); a stream cuts at `xa`, before the stop that is complete first
(`cut_at_first_complete`), since it sees the text token by token.
"""

from collections.abc import Sequence

from rwkv7_jax.tokenizer import TextDecoder, Tokenizer


class StopText:
    """Decodes token ids up to the stop string that is complete first, wherever token boundaries fall.

    The end of the text with which a stop string may begin is held back.

    Raises:
      ValueError: an empty stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]):
        if not all(stops):
            raise ValueError("a stop string is empty; leave it out")
        self.hit = False
        """Whether a stop string was met; later ids are ignored."""
        self._stops = tuple(stops)
        self._decoder = TextDecoder(tokenizer)
        self._shown: list[str] = []
        self._held = ""

    @property
    def text(self) -> str:
        """Returns all text that was given out so far."""
        return "".join(self._shown)

    def push(self, ids: Sequence[int]) -> str:
        """Adds token ids; returns the text that can be shown now."""
        return "" if self.hit else self._scan(self._decoder.push(ids))

    def finish(self) -> str:
        """Ends the text; returns the rest of it."""
        if self.hit:
            return ""
        shown = self._scan(self._decoder.finish())
        rest, self._held = self._held if not self.hit else "", ""
        self._shown.append(rest)
        return shown + rest

    def _scan(self, new: str) -> str:
        text = self._held + new
        met = first_complete_stop(text, self._stops)
        self.hit = met is not None
        end = len(text) - self._undecided(text) if met is None else met
        shown, self._held = text[:end], "" if self.hit else text[end:]
        self._shown.append(shown)
        return shown

    def _undecided(self, text: str) -> int:
        """Returns the length of the longest end of `text` with which a stop string begins."""
        longest = min(len(text), max(map(len, self._stops), default=1) - 1)
        return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in self._stops)), 0)


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
    met = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return min(met)[1] if met else None


def cut_tokens(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> list[int]:
    """Returns tokens of `text`, a beginning of what `ids` decode to: as many of the ids as fit, the rest encoded anew.

    Some tokenizers put a space before what they encode; then fewer of the ids are kept, in the end none.
    """
    for kept in range(len(ids), 0, -1):
        whole = tokenizer.decode(ids[:kept])
        if text.startswith(whole):
            cut = [*ids[:kept], *tokenizer.encode(text[len(whole) :])]
            if tokenizer.decode(cut) == text:
                return cut
    return tokenizer.encode(text)
