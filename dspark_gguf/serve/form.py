"""What a route makes of the answers: one object at the end, or events on the way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any, ClassVar, Generic, TypeVar

from dspark_gguf.serve.bodies import Body
from dspark_gguf.serve.errors import RequestError
from dspark_gguf.serve.parsing import ParsedRequest
from dspark_gguf.serve.pieces import Answers
from dspark_gguf.serve.service import Service
from dspark_gguf.serve.streams import event

Record = dict[str, Any]
BodyT = TypeVar("BodyT", bound=Body)


class Form(ABC, Generic[BodyT]):
    """The shape of a protocol, for one request."""

    kind: ClassVar[str]
    prefix: ClassVar[str]  # of ids

    def __init__(self, service: Service, body: BodyT) -> None:
        self.body, self.vocabulary = body, service.vocabulary
        self.head = service.head(self.kind, self.prefix)

    def requests(self) -> list[ParsedRequest]:
        """What the request asks for; called beside the loop, as it may take long."""
        return [self.body.to_request()]

    @abstractmethod
    async def whole(self, answers: Answers) -> Record:
        """All of it."""

    @abstractmethod
    def events(self, answers: Answers) -> AsyncIterator[str]:
        """Server-sent events."""

    def broken(self, error: RequestError) -> list[str]:
        """The last events of a stream that breaks off."""
        return [event(error.as_dict()), event("[DONE]")]
