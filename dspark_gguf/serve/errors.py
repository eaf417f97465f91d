"""Errors as clients receive them."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from dspark_gguf.errors import DSparkError, UsageError
from dspark_gguf.visible import visible


class RequestError(Exception):
    """An error response: HTTP status, message, and optionally a code and the wrong parameter."""

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.message = visible(message.encode("utf-8", "replace").decode())

    @property
    def kind(self) -> str:
        """OpenAI's ``type`` for errors with this status."""
        names = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        other = "server_error" if self.status >= 500 else "invalid_request_error"
        return names.get(self.status, other)

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers of the response."""
        retry = {"Retry-After": "1"}
        return {401: {"WWW-Authenticate": "Bearer"}, 429: retry, 503: retry}.get(self.status, {})

    def as_dict(self) -> dict[str, Any]:
        """The body in OpenAI's format."""
        return {
            "error": {
                "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
            }
        }  # fmt: skip

    def as_anthropic(self) -> dict[str, Any]:
        """The body in Anthropic's format."""
        kind = "api_error" if self.kind == "server_error" else self.kind
        # Anthropic's clients recognize an overflow of the context window by these words.
        start = "prompt is too long: " if self.code == "context_length_exceeded" else ""
        error: dict[str, Any] = {"type": kind, "message": start + self.message}
        if self.code == "thread_not_found":
            error |= {"details": {"error_code": self.code}}
        return {"type": "error", "error": error}

    def response(self, path: str) -> JSONResponse:
        """The response to a request for `path`, in the format of its API."""
        is_anthropic = path.startswith("/v1/messages")
        body = self.as_anthropic() if is_anthropic else self.as_dict()
        return JSONResponse(body, self.status, self.headers)


def invalid(message: str, param: str | None = None, code: str | None = None) -> RequestError:
    """An error with status 400: the client must change its request."""
    return RequestError(400, message, code, param)


def request_error_of(error: Exception) -> RequestError:
    """The error for the client; of an unexpected one, it gets only the type."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, UsageError):
        return invalid(str(error))
    if isinstance(error, DSparkError):
        return RequestError(500, str(error))
    return RequestError(500, f"unexpected {type(error).__name__}: see the server's log")
