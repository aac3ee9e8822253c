"""Stop strings in streamed text: found wherever token boundaries fall, never shown in part."""

from collections.abc import Sequence

from rwkv7_jax.tokenizer.tokenizers import TextDecoder, Tokenizer


class StopText:
    """Token ids in, text out up to the stop string that is complete first (of several, the longest), however the ids
    come in; holds back what may still become one.

    Raises: ValueError for an empty stop string.
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
        """All text given out so far."""
        return "".join(self._shown)

    def push(self, ids: Sequence[int]) -> str:
        """The text that can be shown now."""
        return "" if self.hit else self._scan(self._decoder.push(ids))

    def finish(self) -> str:
        """The rest, at the end of the text."""
        if self.hit:
            return ""
        shown = self._scan(self._decoder.finish())
        rest, self._held = self._held if not self.hit else "", ""
        self._shown.append(rest)
        return shown + rest

    def _scan(self, new: str) -> str:
        text = self._held + new
        met = first_stop(text, self._stops)
        self.hit = met is not None
        end = len(text) - self._undecided(text) if met is None else met
        shown, self._held = text[:end], "" if self.hit else text[end:]
        self._shown.append(shown)
        return shown

    def _undecided(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string begins."""
        longest = min(len(text), max(map(len, self._stops), default=1) - 1)
        return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in self._stops)), 0)


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the stop string begins that is complete first (of several, the longest); None if there is none."""
    met = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return min(met)[1] if met else None


def cut_tokens(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> list[int]:
    """Tokens of `text`, a beginning of what `ids` decode to: as many of the ids as fit, the rest encoded anew.

    Some tokenizers put a space before what they encode; then fewer of the ids are kept, in the end none.
    """
    for kept in range(len(ids), 0, -1):
        whole = tokenizer.decode(ids[:kept])
        if text.startswith(whole):
            cut = [*ids[:kept], *tokenizer.encode(text[len(whole) :])]
            if tokenizer.decode(cut) == text:
                return cut
    return tokenizer.encode(text)
