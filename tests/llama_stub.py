"""A server that speaks as llama.cpp's does: no echo, `/tokenize`, and grammars of tokens.

Its tokens are words with the blank before them, digits and signs; a character beyond ASCII is cut into its bytes.
"""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

END = 2
"""The end token, which shows no text."""
FIRST = 10
"""The least number of any other token."""
PART = re.compile(r" ?[A-Za-z]+|[\x00-\x7f]|.", re.DOTALL)
SYMBOL = re.compile(r'<\[(\d+)\]>|"((?:\\U[0-9A-F]{8})*)"')
SHARE = 0.5
"""Probability of the token that is written; the next one by number has a quarter, the end an eighth."""


class Llama(ThreadingHTTPServer):
    """`faults` are answers, or a status with its text, that come before any sound one of their path."""

    daemon_threads = True

    def __init__(self, reply=" 7"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.requests, self.faults, self.lock = reply, [], {}, threading.Lock()
        self.tokens = [bytes([i]) for i in range(256)]

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def number(self, spelt):
        """The number of a token."""
        with self.lock:
            if spelt not in self.tokens:
                self.tokens.append(spelt)
            return FIRST + self.tokens.index(spelt)

    def cut(self, text):
        """The tokens of a text, as bytes."""
        parts = [part.encode() for part in PART.findall(text)]
        return [one for part in parts for one in ([part] if part.isascii() else [bytes([b]) for b in part])]

    def answer(self, path, body):
        """The answer to a request."""
        if path == "/tokenize":
            parts = self.cut(body["content"])
            pieces = [part.decode() if part.isascii() else list(part) for part in parts]
            return {"tokens": [{"id": self.number(a), "piece": b} for a, b in zip(parts, pieces, strict=True)]}
        assert path == "/v1/completions", path
        rows = self.rows(body.get("grammar"), body["max_tokens"])
        text = b"".join(bytes(row["bytes"]) for row in rows).decode()
        used = {"prompt_tokens": len(self.cut(body["prompt"])), "completion_tokens": len(rows)}
        # `echo` is read over.
        choice = {"text": text, "index": 0, "finish_reason": "stop", "logprobs": None}
        return {"choices": [choice | ({"logprobs": {"content": rows}} if "logprobs" in body else {})], "usage": used}

    def rows(self, grammar, most):
        """What is listed of each token that is written."""
        if grammar is None:
            spelt = self.cut(self.reply)
        else:
            spelt = []
            for id_, text in SYMBOL.findall(grammar):
                spelt += [self.tokens[int(id_) - FIRST]] if id_ else []
                spelt += [chr(int(code, 16)).encode() for code in text.split("\\U")[1:]]
        return [self.row(one) for one in [*spelt, b""][:most]]

    def row(self, spelt):
        """A token; of a character that takes several it has the last one's number, and that one's probability."""
        own = END if not spelt else self.number(spelt if spelt.isascii() else spelt[-1:])
        other = self.tokens[(own + 1 - FIRST) % 256]
        likely = [(own, spelt, SHARE), (FIRST + self.tokens.index(other), other, SHARE / 2)]
        likely += [] if own == END else [(END, b"", SHARE / 4)]
        shown = [
            {"id": i, "token": s.decode(errors="replace"), "bytes": list(s), "logprob": float(np.log(p))}
            for i, s, p in likely
        ]
        return shown[0] | {"top_logprobs": shown}


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        """Silent."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append((self.path, body))
            waiting = self.server.faults.get(self.path, [])
            fault = waiting.pop(0) if waiting else None
        status, text = (
            fault
            if isinstance(fault, tuple)
            else (200, self.server.answer(self.path, body) if fault is None else fault)
        )
        sent = json.dumps(text).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)
