"""Routes that generate nothing: models, health, properties, slots, metrics, tokenization."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field

from dspark_gguf import __version__
from dspark_gguf.serve.bodies import Items
from dspark_gguf.serve.errors import RequestError
from dspark_gguf.serve.parsing import require_ids
from dspark_gguf.serve.service import Service, service_of
from dspark_gguf.tally import Answer

router = APIRouter()


class Text(BaseModel):
    """The body of ``/tokenize``."""

    content: str = ""
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class Tokens(BaseModel):
    """The body of ``/detokenize``."""

    tokens: Items[int] = Field(default_factory=list)


@router.get("/health")
@router.get("/v1/health")
async def health(request: Request) -> dict[str, str]:
    """Whether the engine accepts requests; 503 if not."""
    engine = service_of(request).engine
    if engine.is_stopping:
        raise RequestError(503, "the engine has stopped", "unavailable")
    return {"status": "ok"}


@router.get("/v1/models")
@router.get("/models")
async def models(request: Request) -> dict[str, Any]:
    """List the model; Codex reads `models`, and Anthropic's clients the fields of a page."""
    only = _model(service_of(request))
    page = {"has_more": False, "first_id": only["id"], "last_id": only["id"]}
    return {"object": "list", "data": [only], "models": [{**only, "name": only["id"]}], **page}


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> dict[str, Any]:
    """Describe the model; 404 for any other name."""
    only = _model(service_of(request))
    if name != only["id"]:
        problem = f"there is no model {name}: this server has {only['id']}"
        raise RequestError(404, problem, "model_not_found")
    return only


def _model(service: Service) -> dict[str, Any]:
    target = service.pair.target
    return {
        "id": service.name, "object": "model", "created": service.created,
        "owned_by": "dspark-gguf",
        # Fields of Anthropic's API:
        "type": "model", "display_name": service.name, "lifecycle": "active",
        "created_at": datetime.fromtimestamp(service.created, timezone.utc).isoformat(),
        "max_input_tokens": service.pair.target_cache.n_ctx,
        "meta": {
            "n_vocab": service.vocabulary.n_vocab, "n_ctx_train": target.n_ctx_train,
            "n_ctx": service.pair.target_cache.n_ctx, "size": target.size,
        },
    }  # fmt: skip


@router.get("/props")
async def props(request: Request) -> dict[str, Any]:
    """Properties of the server, as llama-server has them."""
    service = service_of(request)
    sampling = service.settings.sampling.model_dump(mode="json")
    n_ctx = service.pair.target_cache.n_ctx
    return {
        "default_generation_settings": {"n_ctx": n_ctx, "params": sampling},
        "total_slots": service.engine.slots,
        "model_alias": service.name,
        "model_path": service.pair.target.path.name,
        "modalities": {"vision": False, "audio": False},
        "chat_template": service.pair.template.source,
        "chat_template_caps": {
            "supports_tools": service.parser.supports_tools,
            "supports_thinking": service.parser.supports_thinking,
        },
        "plain_per_second": round(service.engine.batcher.plain_speed, 3),
        "speculation": "; ".join(service.pair.summary(service.settings.speculation).splitlines()),
        "build_info": f"dspark-gguf {__version__}",
    }


@router.get("/slots")
async def slots(request: Request) -> list[dict[str, Any]]:
    """Counts of the running answers, as llama-server has them; no text."""
    service = service_of(request)
    turns = service.engine.turns()
    records = []
    for k in range(service.engine.slots):
        turn = turns[k] if k < len(turns) else None
        answer = turn.answer if turn else Answer()
        records.append(
            {
                "id": k,
                "n_ctx": service.pair.target_cache.n_ctx,
                "is_processing": turn is not None,
                "n_prompt_tokens": len(turn.prompt) if turn else 0,
                "n_decoded": len(answer.tokens),
                "draft_n": answer.tally.drafted,
                "draft_n_accepted": answer.tally.accepted,
            }
        )
    return records


@router.get("/metrics")
async def metrics(request: Request) -> PlainTextResponse:
    """Metrics for Prometheus."""
    engine = service_of(request).engine
    text = engine.metrics.text(engine.running, engine.waiting)
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


@router.post("/tokenize")
async def tokenize(request: Request, body: Text) -> dict[str, Any]:
    """Token ids of a text, with their pieces if wanted."""
    service = service_of(request)

    def tokens() -> list[Any]:
        vocabulary = service.vocabulary
        ids = vocabulary.tokenize(
            body.content, special=body.parse_special, add_bos=body.add_special
        )
        if not body.with_pieces:
            return ids
        return [
            {"id": each, "piece": _text_or_bytes(vocabulary.piece(each, special=True))}
            for each in ids
        ]

    return {"tokens": await service.run_in_thread(tokens)}


def _text_or_bytes(piece: bytes) -> str | list[int]:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


@router.post("/detokenize")
async def detokenize(request: Request, body: Tokens) -> dict[str, Any]:
    """The text of token ids."""
    service = service_of(request)

    def text() -> str:
        ids = require_ids(body.tokens, service.vocabulary, "tokens")
        return service.vocabulary.detokenize(ids, special=True)

    return {"content": await service.run_in_thread(text)}


@router.post("/v1/embeddings")
async def embeddings() -> None:
    """Reject the request; not with 501, after which clients try again."""
    raise RequestError(404, "this server makes no embeddings", "not_implemented")
