"""The routes that answer: each a few lines around a translation."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from dspark_gguf.serve.bodies import ChatBody, CompletionBody
from dspark_gguf.serve.chat import chat_answer, chat_events
from dspark_gguf.serve.completions import asked_of, completion_answer, completion_events, echoes
from dspark_gguf.serve.messages import MessagesBody, message_answer, message_events
from dspark_gguf.serve.responses import ResponsesBody, response_answer, response_events
from dspark_gguf.serve.service import service_of
from dspark_gguf.serve.streams import guarded, streamed, unless_left

router = APIRouter()


@router.post("/v1/chat/completions")
@router.post("/chat/completions")
async def chat(request: Request, body: ChatBody) -> Response:
    """A conversation, answered."""
    service, vocabulary = service_of(request), service_of(request).vocabulary
    scores = bool(body.logprobs)
    if body.stream:
        head = service.head("chat.completion.chunk", "chatcmpl")
        answers = await service.answers(body.asked())
        asks_usage = bool(body.stream_options and body.stream_options.include_usage)
        return streamed(
            answers, guarded(chat_events(answers, head, vocabulary, asks_usage, scores))
        )

    async def work() -> dict[str, Any]:
        answers = await service.answers(body.asked())
        head = service.head("chat.completion", "chatcmpl")
        return await chat_answer(answers, head, vocabulary, scores)

    return JSONResponse(await unless_left(request, work()))


@router.post("/v1/completions")
@router.post("/completions")
async def completions(request: Request, body: CompletionBody) -> Response:
    """A text, continued."""
    service, vocabulary = service_of(request), service_of(request).vocabulary
    head = service.head("text_completion", "cmpl")
    asked, before = asked_of(body, vocabulary), echoes(body, vocabulary)
    if body.stream:
        answers = await service.answers(*asked)
        asks_usage = bool(body.stream_options and body.stream_options.include_usage)
        return streamed(
            answers, guarded(completion_events(answers, head, before, vocabulary, asks_usage))
        )

    async def work() -> dict[str, Any]:
        return await completion_answer(await service.answers(*asked), head, before, vocabulary)

    return JSONResponse(await unless_left(request, work()))


@router.post("/v1/responses")
@router.post("/responses")
async def responses(request: Request, body: ResponsesBody) -> Response:
    """A conversation, answered in OpenAI's newer shape."""
    service = service_of(request)
    head = service.head("response", "resp")
    if body.stream:
        answers = await service.answers(body.asked())
        return streamed(answers, guarded(response_events(answers, head, body), "responses"))

    async def work() -> dict[str, Any]:
        return await response_answer(await service.answers(body.asked()), head, body)

    return JSONResponse(await unless_left(request, work()))


@router.post("/v1/messages")
async def messages(request: Request, body: MessagesBody) -> Response:
    """A conversation, answered in Anthropic's shape."""
    service = service_of(request)
    head = service.head("message", "msg")
    if body.stream:
        answers = await service.answers(body.asked())
        return streamed(
            answers, guarded(message_events(answers, head, service.vocabulary), "anthropic")
        )

    async def work() -> dict[str, Any]:
        answers = await service.answers(body.asked())
        return await message_answer(answers, head, service.vocabulary)

    return JSONResponse(await unless_left(request, work()))


@router.post("/v1/messages/count_tokens")
async def count_tokens(request: Request, body: MessagesBody) -> dict[str, int]:
    """How many tokens a conversation has."""
    service = service_of(request)
    prompt, _ = await service.at_desk(service.desk.prompt, body.asked())
    return {"input_tokens": len(prompt)}
