"""The base class of the formatters, which turn answers into the JSON of an API."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from time import time
from typing import Any, ClassVar, Generic, TypeVar

from dspark_gguf.serve.bodies import Body
from dspark_gguf.serve.deltas import Answers
from dspark_gguf.serve.errors import RequestError
from dspark_gguf.serve.parsing import ParsedRequest
from dspark_gguf.serve.service import Service
from dspark_gguf.serve.streams import event

Record = dict[str, Any]
BodyT = TypeVar("BodyT", bound=Body)


class Formatter(ABC, Generic[BodyT]):
    """Writes the response to one request."""

    kind: ClassVar[str]  # the `object` of a response
    prefix: ClassVar[str]  # of ids

    def __init__(self, service: Service, body: BodyT) -> None:
        self.body, self.vocabulary = body, service.vocabulary
        self.head: Record = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}", "object": self.kind,
            "created": int(time()), "model": service.name,
        }  # fmt: skip

    def requests(self) -> list[ParsedRequest]:
        """Parse the body; called in a worker thread, because it may take long."""
        return [self.body.to_request()]

    @abstractmethod
    async def full_response(self, answers: Answers) -> Record:
        """The body of a response that is not streamed."""

    @abstractmethod
    def events(self, answers: Answers) -> AsyncIterator[str]:
        """The server-sent events of a streamed response."""

    def error_events(self, error: RequestError) -> list[str]:
        """The last events of a stream that fails."""
        return [event(error.as_dict()), event("[DONE]")]
