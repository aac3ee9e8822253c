"""Errors as OpenAI's API has them: a status and one JSON object, without paths, keys or traces."""

from rwkv7_jax.checkpoint.files import one_line

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    421: "permission_error",
    429: "rate_limit_error",
}
LONGEST = 400
"""Characters of a message."""


class ApiError(Exception):
    """What a client is told instead of an answer."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry: int | None = None
    ):
        """Args are the HTTP status, one line, the field it is about, a word for programs, seconds for Retry-After."""
        super().__init__(message)
        self.status, self.param, self.code, self.retry = status, param, code, retry

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        """The JSON object."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        message = one_line(str(self), LONGEST)
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Of the HTTP response."""
        retry = {} if self.retry is None else {"Retry-After": str(self.retry)}
        return retry | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def invalid(param: str, message: str, code: str | None = None) -> ApiError:
    """A 400 about one field."""
    return ApiError(400, f"{param}: {message}", param=param, code=code)


def shown(value: object, limit: int = 60) -> str:
    """A value from outside, quoted and cut."""
    kinds = {dict: "an object", list: "a list"}
    text = kinds.get(type(value)) or repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
