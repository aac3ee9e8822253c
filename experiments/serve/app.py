"""The routes, and what every request passes."""

import asyncio
import pathlib
from collections.abc import Awaitable, Callable
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from experiments.config.serve import NetworkConfig
from experiments.serve import other_routes, state_routes
from experiments.serve.chat import chat
from experiments.serve.completions import complete
from experiments.serve.errors import ApiError
from experiments.serve.guards import Guard, error_response, json_body
from experiments.serve.responses import respond
from experiments.serve.service import Service
from experiments.serve.wire import told

PAGE = pathlib.Path(__file__).parent / "page"
PREFIXES = ("/v1", "", "/api/oai/v1")
"""Where OpenAI's calls are found: its own place, and those of RWKV-Runner and Ai00."""
CLOSED = 499
"""Status in the counts, where a client went away before its answer."""

Plain = Callable[[Service, Request], Awaitable[Response]]
WithJson = Callable[[Service, object, Request], Awaitable[Response]]


def build(service: Service, network: NetworkConfig, key: str | None, closing: Callable[[], bool]) -> Starlette:
    """The application.

    Args:
      service: the model and all that goes with it.
      network: who may call.
      key: what clients must send; None: nothing.
      closing: tells whether the server shuts down.
    """
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(network.cors),
        allow_methods=["GET", "POST", "PUT", "DELETE"],
        allow_headers=["Authorization", "Content-Type", "X-Api-Key"],
    )
    guard = Middleware(Guard, network=network, key=key, closing=closing)
    return Starlette(
        routes=_routes(service),
        middleware=[cors, guard] if network.cors else [guard],
        exception_handlers={HTTPException: _http_error, Exception: _unexpected},
    )


def _routes(service: Service) -> list[BaseRoute]:
    get, post = partial(_plain, service), partial(_with_json, service)
    routes: list[BaseRoute] = []
    for prefix in PREFIXES:
        routes += [
            post(f"{prefix}/chat/completions", chat),
            post(f"{prefix}/completions", complete),
            get(f"{prefix}/models", other_routes.list_models),
            get(f"{prefix}/models/{{name}}", other_routes.get_model),
        ]
    return [
        *routes,
        post("/v1/responses", respond),
        get("/v1/responses/{name}", other_routes.delete_conversation, "DELETE"),
        get("/v1/sessions", other_routes.list_sessions),
        get("/v1/sessions/{name}", other_routes.get_session),
        get("/v1/sessions/{name}", other_routes.delete_conversation, "DELETE"),
        get("/v1/states", state_routes.list_states),
        post("/v1/states", state_routes.create),
        get("/v1/states/{name}", state_routes.get_state),
        get("/v1/states/{name}", state_routes.upload, "PUT"),
        get("/v1/states/{name}", state_routes.delete, "DELETE"),
        get("/v1/states/{name}/picture", state_routes.picture),
        get("/v1/states/{name}/file", state_routes.download),
        post("/v1/states/{name}/fork", state_routes.fork),
        post("/v1/states/{name}/scale", state_routes.scale),
        get("/tokenizer_info", other_routes.tokenizer_info),
        post("/tokenize", other_routes.tokenize),
        post("/detokenize", other_routes.detokenize),
        get("/health", other_routes.health),
        get("/healthz", other_routes.health),
        get("/metrics", other_routes.metrics),
        Route("/", _page, methods=["GET"]),
        Mount("/page", StaticFiles(directory=PAGE)),
    ]


def _plain(service: Service, path: str, handler: Plain, method: str = "GET") -> Route:
    async def endpoint(request: Request) -> Response:
        return await _answered(service, path, handler(service, request))

    return Route(path, endpoint, methods=[method])


def _with_json(service: Service, path: str, handler: WithJson) -> Route:
    limits = service.limits

    async def read(request: Request) -> Response:
        table = await json_body(request, limits.max_body * state_routes.MIB, limits.read_timeout)
        return await handler(service, table, request)

    async def endpoint(request: Request) -> Response:
        return await _answered(service, path, read(request))

    return Route(path, endpoint, methods=["POST"])


async def _answered(service: Service, path: str, work: Awaitable[Response]) -> Response:
    """An answer, or the error in its place; both are counted."""
    try:
        response = await work
    except (ClientDisconnect, asyncio.CancelledError):
        service.metrics.count("rwkv7_requests_total", route=path, status=str(CLOSED))
        return Response(status_code=CLOSED)
    except Exception as error:
        response = error_response(told(error))
    service.metrics.count("rwkv7_requests_total", route=path, status=str(response.status_code))
    return response


async def _page(request: Request) -> Response:
    return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": POLICY})


POLICY = "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; object-src 'none'; frame-ancestors 'none'"
"""The page loads nothing from elsewhere."""


async def _http_error(request: Request, error: Exception) -> Response:
    """Of routing: no such path, or another method."""
    assert isinstance(error, HTTPException)
    words = {404: "there is nothing at this path; the API begins with /v1", 405: "this path takes another method"}
    made = ApiError(error.status_code, words.get(error.status_code, error.detail))
    response = error_response(made)
    response.headers.update(error.headers or {})
    return response


async def _unexpected(request: Request, error: Exception) -> Response:
    return error_response(told(error))
