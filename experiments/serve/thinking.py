"""Parts an answer, while it streams, into the chain of thought in `<think>` and what is said after it."""

from typing import NamedTuple

from rwkv7_jax.generation.chat_template import Think, answer_opening

BEGIN, END = "<think>", "</think>"
PREFIX = "Assistant:"


class Parts(NamedTuple):
    """New text of both."""

    content: str = ""
    reasoning: str = ""


class ThoughtSplitter:
    """Takes text piece by piece; what may still become a mark is held back. Blanks around the marks are left out."""

    def __init__(self, opening: str = ""):
        """`opening` is what the prompt has after `Assistant:`, with which the answer begins."""
        self.content, self.reasoning = "", ""
        self._held, self._where = "", "start"
        self._take(opening.lstrip())

    def push(self, text: str) -> Parts:
        """Adds a piece; returns what can be shown of it."""
        before = (len(self.content), len(self.reasoning))
        self._take(text)
        return Parts(self.content[before[0] :], self.reasoning[before[1] :])

    def finish(self) -> Parts:
        """Ends the text; returns the rest of it."""
        before = (len(self.content), len(self.reasoning))
        if self._where == "inside":
            self._add_reasoning(self._held)
        else:
            self._add_content(self._held)
        self._held = ""
        return Parts(self.content[before[0] :], self.reasoning[before[1] :])

    def _take(self, text: str) -> None:
        self._held += text
        if self._where == "start":
            self._begin()
        if self._where == "inside":
            self._inside()
        if self._where == "after" and self._held:
            self._add_content(self._held)
            self._held = ""

    def _begin(self) -> None:
        text = self._held.lstrip()
        if text.startswith(BEGIN):
            self._held, self._where = text[len(BEGIN) :], "inside"
        elif not BEGIN.startswith(text):
            self._where = "after"

    def _inside(self) -> None:
        at = self._held.find(END)
        if at >= 0:
            self._add_reasoning(self._held[:at])
            self.reasoning = self.reasoning.rstrip()
            self._held, self._where = self._held[at + len(END) :], "after"
            return
        kept = next((n for n in range(len(END) - 1, 0, -1) if self._held.endswith(END[:n])), 0)
        whole = len(self._held) - kept
        # Blanks before a mark are left out, so they wait for what follows.
        shown = len(self._held[:whole].rstrip())
        self._add_reasoning(self._held[:shown])
        self._held = self._held[shown:]

    def _add_reasoning(self, text: str) -> None:
        self.reasoning += text if self.reasoning else text.lstrip()

    def _add_content(self, text: str) -> None:
        self.content += text if self.content else text.lstrip()


def opening(think: Think | None) -> str:
    """What a prompt has after its last `Assistant:`."""
    return answer_opening(think).removeprefix(PREFIX)
