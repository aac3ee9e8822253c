"""Log-probabilities of tokens, in the forms of both of OpenAI's ways to ask for text."""

from collections.abc import Sequence
from typing import NamedTuple

from rwkv7_jax.inference.requests import Result, TokenLogprob
from rwkv7_jax.tokenizer import Tokenizer
from rwkv7_jax.tokenizer.abilities import decode_bytes_after, special_tokens


class Spelling(NamedTuple):
    """How a token is written."""

    text: str
    """`bytes:` and escapes, where its bytes are not UTF-8 by themselves."""
    data: bytes


class Speller:
    """Writes tokens."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self._special = tokenizer, special_tokens(tokenizer)
        self._known: dict[int, Spelling] = {}

    def __call__(self, token: int) -> Spelling:
        """How a token is written."""
        if token not in self._known:
            data = decode_bytes_after(self._tokenizer, [token])
            self._known[token] = Spelling(self._text(token, data), data)
        return self._known[token]

    def _text(self, token: int, data: bytes) -> str:
        if not data:
            return self._special.get(token, f"<token {token}>")
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def chat_logprobs(found: Sequence[TokenLogprob], top: int, speller: Speller) -> dict[str, object]:
    """As /v1/chat/completions has them, `top` of the likeliest beside each."""

    def one(token: int, logprob: float) -> dict[str, object]:
        text, data = speller(token)
        return {"token": text, "logprob": logprob, "bytes": list(data)}

    content = [
        {**one(it.token, it.logprob), "top_logprobs": [one(*pair) for pair in it.likeliest[:top]]} for it in found
    ]
    return {"content": content, "refusal": None}


class Entry(NamedTuple):
    """A token of the text, with numbers if there are any."""

    text: str
    score: TokenLogprob | None


def echoed(prompt: Sequence[int], result: Result, speller: Speller) -> list[Entry]:
    """Entries of the prompt's tokens; the first one has no numbers, since nothing stands before it."""
    scores = [None, *(result.prompt_logprobs or [None] * (len(prompt) - 1))]
    return [Entry(speller(token).text, score) for token, score in zip(prompt, scores, strict=True)]


def answered(found: Sequence[TokenLogprob], speller: Speller) -> list[Entry]:
    """Entries of an answer's tokens."""
    return [Entry(speller(score.token).text, score) for score in found]


def completion_logprobs(entries: Sequence[Entry], top: int, speller: Speller, offset: int = 0) -> dict[str, object]:
    """As /v1/completions has them; `offset` is that of the first entry in the text."""
    offsets, at = [], offset
    for entry in entries:
        offsets.append(at)
        at += len(entry.text)
    return {
        "tokens": [entry.text for entry in entries],
        "token_logprobs": [None if entry.score is None else entry.score.logprob for entry in entries],
        "top_logprobs": [None if entry.score is None else _likeliest(entry.score, top, speller) for entry in entries],
        "text_offset": offsets,
    }


def _likeliest(score: TokenLogprob, top: int, speller: Speller) -> dict[str, float]:
    """The likeliest tokens, and the chosen one."""
    pairs = [*score.likeliest[:top], (score.token, score.logprob)]
    return {speller(token).text: logprob for token, logprob in pairs}
