"""/v1/states: list, info, picture, upload, download, fork, mix, scale, delete."""

import asyncio
import math

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from experiments.serve import wishes
from experiments.serve.errors import ApiError, invalid, shown
from experiments.serve.fields import Fields
from experiments.serve.guards import body
from experiments.serve.names import checked_name
from experiments.serve.pictures import head_norms, svg
from experiments.serve.service import Service, decoded
from experiments.serve.state_files import BASE, OWN, from_bytes, to_bytes
from experiments.serve.wire import Json
from experiments.serve.wishes import Source
from rwkv7_jax.checkpoint.states import TunedState

FLAGS = {"true": True, "1": True, "false": False, "0": False, "": True}
SHOWN = (BASE, "method", "task", "tuned_on")
"""Fields of a file's metadata that are told; others may hold paths."""
MIB = 2**20


def info(service: Service, name: str, field: str = "name") -> dict[str, object]:
    """What is known of a state."""
    loaded = service.states.load(name, field)
    norms = head_norms(loaded.state)
    told = {key: loaded.metadata[key][:200] for key in SHOWN if key in loaded.metadata}
    shifts = bool(np.any(loaded.state.att_shift) or np.any(loaded.state.ffn_shift))
    return {
        "id": name,
        "object": "state",
        "model": f"{service.name}:{name}",
        "layers": len(norms),
        "heads": len(norms[0]),
        "head_size": service.lm.config.head_size,
        "has_shifts": shifts,
        "norm": float(np.sqrt(np.square(np.asarray(norms)).sum())),
        "head_norms": norms,
        **told,
    }


def listed(service: Service) -> list[dict[str, object]]:
    """Every state in short, with the reason if one cannot be used."""
    found = []
    for name in service.states.names():
        reason = service.states.refusal(name)
        entry: dict[str, object] = {
            "id": name,
            "object": "state",
            "model": f"{service.name}:{name}",
            "usable": not reason,
        }
        found.append(entry | ({"reason": reason} if reason else {}))
    return found


async def list_states(service: Service, request: Request) -> Response:
    """GET /v1/states."""
    return Json({"object": "list", "data": await asyncio.to_thread(listed, service)})


async def get_state(service: Service, request: Request) -> Response:
    """GET /v1/states/NAME."""
    return Json(await asyncio.to_thread(info, service, request.path_params["name"]))


async def picture(service: Service, request: Request) -> Response:
    """GET /v1/states/NAME/picture?with=NAME&weight=WEIGHT, of one state or of `(1 - weight) NAME + weight NAME`."""
    name, other = request.path_params["name"], request.query_params.get("with")
    if other is None:
        loaded, title = await asyncio.to_thread(service.states.load, name, "name"), name
    else:
        weight = _query_number(request, "weight", 0.5)
        parts = {checked_name("name", name): 1 - weight, checked_name("with", other): weight}
        loaded = await asyncio.to_thread(service.states.mixed, parts, "with")
        title = " + ".join(f"{part:.2f} {one}" for one, part in parts.items())
    return Response(svg(head_norms(loaded.state), title), media_type="image/svg+xml")


async def download(service: Service, request: Request) -> Response:
    """GET /v1/states/NAME/file?layout=LAYOUT&format=FORMAT."""
    name, layout = request.path_params["name"], request.query_params.get("layout", OWN)
    form = request.query_params.get("format")
    if form not in (None, "pth", "safetensors", "st"):
        raise invalid("format", f"must be one of pth, safetensors, st, not {shown(form)}")
    loaded = await asyncio.to_thread(service.states.load, name, "name")
    told = {key: text for key, text in loaded.metadata.items() if key in (*SHOWN, "conversation")}
    data = await asyncio.to_thread(to_bytes, TunedState(loaded.state, told), layout, form and f".{form}")
    suffix = form or ("pth" if data[:2] == b"PK" else "st" if layout == "web-rwkv" else "safetensors")
    headers = {"Content-Disposition": f'attachment; filename="{name}.{suffix}"'}
    return Response(data, media_type="application/octet-stream", headers=headers)


async def upload(service: Service, request: Request) -> Response:
    """PUT /v1/states/NAME?layout=LAYOUT&override=true&replace=true, with the file as the body."""
    name = checked_name("name", request.path_params["name"])
    override, replace = (_query_flag(request, field) for field in ("override", "replace"))
    data = await body(request, service.limits.max_body * MIB, service.limits.read_timeout)
    layout = request.query_params.get("layout")
    loaded = await asyncio.to_thread(from_bytes, data, "body", service.states.model, layout=layout, override=override)
    return await _saved(service, name, loaded, replace)


def _query_flag(request: Request, field: str) -> bool:
    given = request.query_params.get(field, "false").lower()
    if given not in FLAGS:
        raise invalid(field, f"true or false is wanted, not {shown(given)}")
    return FLAGS[given]


def _query_number(request: Request, field: str, default: float) -> float:
    given = request.query_params.get(field)
    try:
        number = default if given is None else float(given)
    except ValueError:
        number = math.nan
    if not -1e6 <= number <= 1e6:
        raise invalid(field, f"a number is wanted, not {shown(given)}")
    return number


async def create(service: Service, table: object, request: Request) -> Response:
    """POST /v1/states: a state from a file in base64, from others that are mixed, or from a conversation."""
    fields = Fields(table)
    name, replace = checked_name("name", fields.needed("name")), bool(fields.flag("replace"))
    data, mix = fields.text("data"), fields.get("mix")
    session, response = fields.text("session"), fields.text("response")
    layout, override = fields.text("layout"), bool(fields.flag("override"))
    fields.finish()
    if sum(one is not None for one in (data, mix, session, response)) != 1:
        raise ApiError(400, "give one of data, mix, session and response")
    if data is not None:
        loaded = await asyncio.to_thread(
            lambda: from_bytes(decoded(data, "data"), "data", service.states.model, layout=layout, override=override)
        )
    elif mix is not None:
        loaded = await asyncio.to_thread(service.find, Source(mix=wishes.mixture(mix, "mix")))
    else:
        kind, held = ("session", service.sessions) if session is not None else ("response", service.responses)
        of = checked_name(kind, session or response or "")
        conversation = await asyncio.to_thread(held.read, of)
        if conversation is None:
            raise held.missing(of, kind)
        loaded = service.kept(conversation, kind)
    return await _saved(service, name, loaded, replace)


async def fork(service: Service, table: object, request: Request) -> Response:
    """POST /v1/states/NAME/fork with the name of the copy."""
    fields = Fields(table)
    name, replace = checked_name("name", fields.needed("name")), bool(fields.flag("replace"))
    fields.finish()
    loaded = await asyncio.to_thread(service.states.load, request.path_params["name"], "name")
    return await _saved(service, name, loaded, replace)


async def scale(service: Service, table: object, request: Request) -> Response:
    """POST /v1/states/NAME/scale with the factor `by` and the name of the result."""
    fields = Fields(table)
    name, replace = checked_name("name", fields.needed("name")), bool(fields.flag("replace"))
    factor = fields.number("by", -1e6, 1e6)
    fields.finish()
    if factor is None:
        raise invalid("by", "is missing; a number is wanted")
    loaded = await asyncio.to_thread(service.states.load, request.path_params["name"], "name")
    return await _saved(service, name, service.states.scaled(loaded, factor, "by"), replace)


async def delete(service: Service, request: Request) -> Response:
    """DELETE /v1/states/NAME."""
    name = request.path_params["name"]
    await asyncio.to_thread(service.states.delete, name)
    return Json({"id": name, "object": "state", "deleted": True})


async def _saved(service: Service, name: str, loaded: TunedState, replace: bool) -> Response:
    await asyncio.to_thread(service.states.save, name, loaded, replace=replace)
    return Json(await asyncio.to_thread(info, service, name), 201)
