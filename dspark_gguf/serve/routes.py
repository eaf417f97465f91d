"""The routes that answer: a body, and the form that its answers get."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from dspark_gguf.serve.bodies import ChatBody, CompletionBody
from dspark_gguf.serve.chat import ChatForm
from dspark_gguf.serve.completions import CompletionForm
from dspark_gguf.serve.form import Form
from dspark_gguf.serve.messages import MessagesBody, MessagesForm
from dspark_gguf.serve.responses import ResponsesBody, ResponsesForm
from dspark_gguf.serve.service import service_of
from dspark_gguf.serve.streams import Streamed, Whole, guarded, unless_left

router = APIRouter()


@router.post("/v1/chat/completions")
@router.post("/chat/completions")
async def chat(request: Request, body: ChatBody) -> Response:
    """A conversation, answered."""
    return await _answered(request, ChatForm(service_of(request), body))


@router.post("/v1/completions")
@router.post("/completions")
async def completions(request: Request, body: CompletionBody) -> Response:
    """A text, continued."""
    return await _answered(request, CompletionForm(service_of(request), body))


@router.post("/v1/responses")
@router.post("/responses")
async def responses(request: Request, body: ResponsesBody) -> Response:
    """A conversation, answered in OpenAI's newer shape."""
    return await _answered(request, ResponsesForm(service_of(request), body))


@router.post("/v1/messages")
async def messages(request: Request, body: MessagesBody) -> Response:
    """A conversation, answered in Anthropic's shape."""
    return await _answered(request, MessagesForm(service_of(request), body))


async def _answered(request: Request, form: Form[Any]) -> Response:
    service = service_of(request)
    if form.body.stream:
        answers = await service.answers(form.requests)
        return Streamed(answers, guarded(form.events(answers), form.broken))

    async def work() -> dict[str, Any]:
        return await form.whole(await service.answers(form.requests))

    return Whole(await unless_left(request.receive, work()))


@router.post("/v1/messages/count_tokens")
async def count_tokens(request: Request, body: MessagesBody) -> dict[str, Any]:
    """How many tokens a conversation has."""
    return {"input_tokens": await _counted(request, body)}


@router.post("/v1/responses/input_tokens")
async def input_tokens(request: Request, body: ResponsesBody) -> dict[str, Any]:
    """The same in OpenAI's shape."""
    return {"object": "response.input_tokens", "input_tokens": await _counted(request, body)}


async def _counted(request: Request, body: MessagesBody | ResponsesBody) -> int:
    service = service_of(request)
    prompt, _ = await service.in_thread(lambda: service.parser.prompt(body.to_request()))
    return len(prompt)
