"""Models, sessions, responses, the tokenizer, health and metrics."""

import asyncio
import os
import pathlib
import sys

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from experiments.serve.conversations import Conversations
from experiments.serve.errors import ApiError, invalid
from experiments.serve.fields import Fields
from experiments.serve.names import checked_name
from experiments.serve.service import Service, Start
from experiments.serve.wire import Json
from rwkv7_jax.generation.arguments import token_ids
from rwkv7_jax.tokenizer.abilities import special_tokens

END = "<|rwkv_tokenizer_end_of_text|>"
"""Stands for the end token of a tokenizer that has no text for it (World), where it is all that is tokenised."""

try:
    import resource
except ImportError:  # not POSIX
    resource = None


async def list_models(service: Service, request: Request) -> Response:
    """GET /v1/models: the model, and a name for each of its states."""
    names = await asyncio.to_thread(service.states.usable)
    return Json({"object": "list", "data": [_model(service, name) for name in ("", *names)]})


async def get_model(service: Service, request: Request) -> Response:
    """GET /v1/models/NAME."""
    base, _, state = request.path_params["name"].partition(":")
    if base != service.name:
        raise ApiError(404, "there is no such model; GET /v1/models lists them", param="model", code="model_not_found")
    if state:
        await asyncio.to_thread(service.states.load, state)
    return Json(_model(service, state))


def _model(service: Service, state: str) -> dict[str, object]:
    name = f"{service.name}:{state}" if state else service.name
    more = {"root": service.name, "parent": service.name if state else None}
    return {"id": name, "object": "model", "created": service.created, "owned_by": "rwkv7-jax", **more}


def conversations(service: Service, request: Request) -> Conversations:
    """Those that a route is about."""
    return service.responses if "/responses" in request.url.path else service.sessions


async def list_sessions(service: Service, request: Request) -> Response:
    """GET /v1/sessions."""
    data = [{"id": name, "object": "session"} for name in service.sessions.names()]
    return Json({"object": "list", "data": data})


async def get_session(service: Service, request: Request) -> Response:
    """GET /v1/sessions/NAME."""
    name = checked_name("session", request.path_params["name"])
    found = await asyncio.to_thread(service.sessions.read, name)
    if found is None:
        raise service.sessions.missing(name, "session")
    record = found.record
    return Json(
        {"id": name, "object": "session", "model": record.model, "tokens": record.tokens, "answers": record.answers}
    )


async def delete_conversation(service: Service, request: Request) -> Response:
    """DELETE /v1/sessions/NAME, DELETE /v1/responses/NAME."""
    held = conversations(service, request)
    name = checked_name(held.kind, request.path_params["name"])
    await asyncio.to_thread(held.delete, name)
    return Json({"id": name, "object": held.kind, "deleted": True})


async def tokenizer_info(service: Service, request: Request) -> Response:
    """GET /tokenizer_info, in the form of vLLM, which lm-evaluation-harness reads."""
    tokenizer = service.lm.tokenizer
    end = special_tokens(tokenizer).get(tokenizer.eos_id) or END
    return Json({"tokenizer_class": type(tokenizer).__name__, "vocab_size": tokenizer.vocab_size, "eos_token": end})


async def tokenize(service: Service, table: object, request: Request) -> Response:
    """POST /tokenize, in the form of vLLM."""
    fields = Fields(table)
    text = fields.needed("prompt")
    spelled = text == END and service.lm.tokenizer.eos_id not in special_tokens(service.lm.tokenizer)
    ids = (
        [service.lm.tokenizer.eos_id]
        if spelled
        else list(await service.encode(text, "prompt", Start()) if text else ())
    )
    return Json({"tokens": ids, "count": len(ids), "max_model_len": service.limits.max_prompt})


async def detokenize(service: Service, table: object, request: Request) -> Response:
    """POST /detokenize, in the form of vLLM."""
    given = Fields(table).get("tokens")
    try:
        ids = token_ids("tokens", given, service.lm.config.vocab_size) if given != [] else []
    except ValueError as error:
        raise invalid("tokens", str(error).removeprefix("tokens: ")) from None
    return Json({"prompt": service.lm.decode(ids)})


async def health(service: Service, request: Request) -> Response:
    """GET /health."""
    stats = service.engine.stats()
    return Json({"status": "ok", "model": service.name, "running": stats.running, "waiting": stats.waiting})


async def metrics(service: Service, request: Request) -> Response:
    """GET /metrics."""
    engine = {f"rwkv7_engine_{name}": float(value) for name, value in service.engine.stats()._asdict().items()}
    held = {
        "rwkv7_sessions": len(service.sessions),
        "rwkv7_responses": len(service.responses),
        "process_resident_memory_bytes": resident(),
    }
    text = service.metrics.text({**engine, **held})
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def resident() -> float:
    """Bytes of memory of this process; where the system does not say, the most it ever had, or 0."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return float(pages * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, IndexError):
        pass
    if resource is None:
        return 0.0
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(largest * (1 if sys.platform == "darwin" else 1024))
