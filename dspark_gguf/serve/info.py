"""Routes about the server: models, health, properties, slots, metrics, tokens."""

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

router = APIRouter()


class Text(BaseModel):
    """``/tokenize``."""

    content: str = ""
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class Tokens(BaseModel):
    """``/detokenize``."""

    tokens: Items[int] = Field(default_factory=list)


@router.get("/health")
@router.get("/v1/health")
async def health(request: Request) -> dict[str, str]:
    """Whether answers can be had."""
    engine = service_of(request).engine
    if engine.is_stopping:
        raise RequestError(503, "the engine has ended", "unavailable")
    return {"status": "ok"}


@router.get("/v1/models")
@router.get("/models")
async def models(request: Request) -> dict[str, Any]:
    """The one model; Codex reads `models`, and Anthropic's clients pages."""
    one = _model(service_of(request))
    pages = {"has_more": False, "first_id": one["id"], "last_id": one["id"]}
    return {"object": "list", "data": [one], "models": [{**one, "name": one["id"]}], **pages}


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> dict[str, Any]:
    """The same by its name."""
    one = _model(service_of(request))
    if name != one["id"]:
        raise RequestError(
            404, f"there is no model {name} here, but {one['id']}", "model_not_found"
        )
    return one


def _model(service: Service) -> dict[str, Any]:
    target = service.pair.target
    return {
        "id": service.name, "object": "model", "created": service.created,
        "owned_by": "dspark-gguf",
        # Anthropic's names
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
    """As llama-server has them."""
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
            "supports_tools": service.parser.knows_tools,
            "supports_thinking": service.parser.thinks,
        },
        "plain_per_second": round(service.engine.batcher.plain_speed, 3),
        "speculation": "; ".join(service.pair.summary(service.settings.speculation).splitlines()),
        "build_info": f"dspark-gguf {__version__}",
    }


@router.get("/slots")
async def slots(request: Request) -> list[dict[str, Any]]:
    """What is being answered; no texts."""
    service = service_of(request)
    found = []
    turns = service.engine.turns()
    for k in range(service.engine.slots):
        turn = turns[k] if k < len(turns) else None
        answer = turn.answer if turn else None
        found.append(
            {
                "id": k,
                "n_ctx": service.pair.target_cache.n_ctx,
                "is_processing": turn is not None,
                "n_prompt_tokens": len(turn.prompt) if turn else 0,
                "n_decoded": len(answer.tokens) if answer else 0,
                "draft_n": answer.tally.drafted if answer else 0,
                "draft_n_accepted": answer.tally.accepted if answer else 0,
            }
        )
    return found


@router.get("/metrics")
async def metrics(request: Request) -> PlainTextResponse:
    """For Prometheus."""
    engine = service_of(request).engine
    text = engine.metrics.text(engine.running, engine.waiting)
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


@router.post("/tokenize")
async def tokenize(request: Request, body: Text) -> dict[str, Any]:
    """Ids of a text."""
    service = service_of(request)

    vocabulary = service.vocabulary

    def found() -> list[Any]:
        ids = vocabulary.tokenize(
            body.content, special=body.parse_special, add_bos=body.add_special
        )
        if not body.with_pieces:
            return ids
        return [
            {"id": each, "piece": _text_or_bytes(vocabulary.piece(each, special=True))}
            for each in ids
        ]

    return {"tokens": await service.in_thread(found)}


def _text_or_bytes(piece: bytes) -> str | list[int]:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


@router.post("/detokenize")
async def detokenize(request: Request, body: Tokens) -> dict[str, Any]:
    """The text of ids."""
    service = service_of(request)

    def text() -> str:
        ids = require_ids(body.tokens, service.vocabulary, "tokens")
        return service.vocabulary.detokenize(ids, special=True)

    return {"content": await service.in_thread(text)}


@router.post("/v1/embeddings")
async def embeddings() -> None:
    """Not of a pair; a client would send a 501 again."""
    raise RequestError(404, "this server answers; it makes no embeddings", "not_implemented")
