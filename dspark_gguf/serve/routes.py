"""The routes that generate text or count tokens, in the APIs of OpenAI and Anthropic."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from dspark_gguf.serve.bodies import ChatBody, CompletionBody
from dspark_gguf.serve.chat import ChatFormatter
from dspark_gguf.serve.completions import CompletionFormatter
from dspark_gguf.serve.formatter import Formatter
from dspark_gguf.serve.messages import MessagesBody, MessagesFormatter
from dspark_gguf.serve.responses import ResponsesBody, ResponsesFormatter
from dspark_gguf.serve.service import service_of
from dspark_gguf.serve.streams import (
    AsciiJSONResponse,
    EventStreamResponse,
    cancel_on_disconnect,
    with_error_events,
)

router = APIRouter()


@router.post("/v1/chat/completions")
@router.post("/chat/completions")
async def chat(request: Request, body: ChatBody) -> Response:
    """Answer a conversation."""
    return await _respond(request, ChatFormatter(service_of(request), body))


@router.post("/v1/completions")
@router.post("/completions")
async def completions(request: Request, body: CompletionBody) -> Response:
    """Continue a text."""
    return await _respond(request, CompletionFormatter(service_of(request), body))


@router.post("/v1/responses")
@router.post("/responses")
async def responses(request: Request, body: ResponsesBody) -> Response:
    """Answer a conversation in OpenAI's Responses API."""
    return await _respond(request, ResponsesFormatter(service_of(request), body))


@router.post("/v1/messages")
async def messages(request: Request, body: MessagesBody) -> Response:
    """Answer a conversation in Anthropic's API."""
    return await _respond(request, MessagesFormatter(service_of(request), body))


async def _respond(request: Request, formatter: Formatter[Any]) -> Response:
    service = service_of(request)
    if formatter.body.stream:
        answers = await service.answers(formatter.requests)
        events = with_error_events(formatter.events(answers), formatter.error_events)
        return EventStreamResponse(answers, events)

    async def response() -> dict[str, Any]:
        return await formatter.full_response(await service.answers(formatter.requests))

    return AsciiJSONResponse(await cancel_on_disconnect(request.receive, response()))


@router.post("/v1/messages/count_tokens")
async def count_tokens(request: Request, body: MessagesBody) -> dict[str, Any]:
    """Count the tokens of a prompt, in Anthropic's API."""
    return {"input_tokens": await _count_tokens(request, body)}


@router.post("/v1/responses/input_tokens")
async def input_tokens(request: Request, body: ResponsesBody) -> dict[str, Any]:
    """Count the tokens of a prompt, in OpenAI's API."""
    return {"object": "response.input_tokens", "input_tokens": await _count_tokens(request, body)}


async def _count_tokens(request: Request, body: MessagesBody | ResponsesBody) -> int:
    service = service_of(request)
    prompt, _ = await service.run_in_thread(lambda: service.parser.prompt(body.to_request()))
    return len(prompt)
