"""/v1/states against a real server: upload, list, info, picture, fork, mix, scale, download, delete."""

import base64
import xml.etree.ElementTree as ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rwkv7_jax import State, load_state, save_state
from rwkv7_jax.checkpoint import LAYOUTS, export_state
from rwkv7_jax.wkv_state import Offset


def same(one: State, other: State, atol: float = 0) -> bool:
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.allclose(a, b, rtol=0, atol=atol) for a, b in leaves)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_state_goes_up_and_down_in_every_layout(served, states, tmp_path, layout):
    """What comes down is what went up, in whichever layout, up to float16 where the layout has that."""
    name, atol = f"from-{layout}", 0.1 if LAYOUTS[layout].dtype == np.float16 else 0
    for suffix in (".st", ".safetensors") if layout == "web-rwkv" else (".pth", ".safetensors"):
        path = tmp_path / f"state{suffix}"
        export_state(path, states["wild"], layout=layout)
        answer = served.http.put(f"/v1/states/{name}?layout={layout}&replace=true", content=path.read_bytes())
        assert answer.status_code == 201, answer.text
        assert same(served.service.states.load(name).state, states["wild"], atol)
    down = tmp_path / "down"
    down.write_bytes(served.http.get(f"/v1/states/{name}/file?layout={layout}").content)
    assert same(load_state(down, layout=layout).state, states["wild"], atol)
    assert served.http.delete(f"/v1/states/{name}").json() == {"id": name, "object": "state", "deleted": True}
    assert served.http.get(f"/v1/states/{name}").status_code == 404


def test_the_layout_of_a_foreign_file_has_to_be_named(served, states, tmp_path):
    export_state(tmp_path / "state.pth", states["wild"], layout="fla")
    answer = served.http.put("/v1/states/unnamed", content=(tmp_path / "state.pth").read_bytes())
    assert answer.status_code == 400
    assert "layout" in answer.json()["error"]["message"]
    answer = served.http.put("/v1/states/unnamed?layout=other", content=(tmp_path / "state.pth").read_bytes())
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "layout")


def test_an_upscaled_state_is_refused_with_what_takes_it(served, states, tmp_path):
    upscaled = states["wild"]._replace(wkv=Offset(states["wild"].wkv, states["wild"].wkv))
    save_state(tmp_path / "up.safetensors", upscaled, metadata={"base_model_hash": served.lm.weights_hash})
    answer = served.http.put("/v1/states/up", content=(tmp_path / "up.safetensors").read_bytes())
    assert answer.status_code == 400
    told = answer.json()["error"]["message"]
    assert "is upscaled (offset)" in told
    assert "rwkv7 chat and rwkv7 generate take it" in told


def test_info_and_picture_show_each_head(served, states):
    told = served.http.get("/v1/states/wild").json()
    wkv = np.asarray(states["wild"].wkv)
    np.testing.assert_allclose(told["head_norms"], np.sqrt(np.square(wkv).sum((-2, -1))), rtol=1e-5)
    assert told["model"] == "student:wild"
    picture = served.http.get("/v1/states/wild/picture")
    assert picture.headers["content-type"].startswith("image/svg+xml")
    squares = ElementTree.fromstring(picture.text).findall("{http://www.w3.org/2000/svg}rect")
    assert len(squares) == wkv.shape[0] * wkv.shape[1]
    mixed = served.http.get("/v1/states/wild/picture?with=none&weight=0.25")
    assert "0.75 wild + 0.25 none" in mixed.text
    assert served.http.get("/v1/states/wild/picture?with=calm&weight=much").json()["error"]["param"] == "weight"


def test_fork_mix_and_scale(served, states):
    served.post("/v1/states/calm/fork", name="fork")
    assert same(served.service.states.load("fork").state, states["calm"])
    served.post("/v1/states", name="mix", mix={"calm": 0.25, "wild": 0.5})
    expected = jax.tree.map(lambda a, b: 0.25 * a + 0.5 * b, states["calm"], states["wild"])
    assert same(served.service.states.load("mix").state, expected, 1e-6)
    served.post("/v1/states/calm/scale", name="scaled", by=-2)
    assert same(served.service.states.load("scaled").state, jax.tree.map(lambda leaf: -2.0 * leaf, states["calm"]))
    names = [one["id"] for one in served.http.get("/v1/states").json()["data"]]
    assert {"fork", "mix", "scaled"} <= set(names)
    for name in ("fork", "mix", "scaled"):
        served.http.delete(f"/v1/states/{name}")


def test_a_name_that_is_taken_is_not_written_over(served, states):
    assert served.refused(409, "/v1/states/calm/fork", name="wild")["param"] == "name"
    assert same(served.service.states.load("wild").state, states["wild"])


def test_a_session_becomes_a_state_that_goes_on(served):
    ask = {"prompt": "Mira has 3 red", "max_tokens": 4, "temperature": 0}
    first = served.post("/v1/completions", session="to-state", **ask)["choices"][0]["text"]
    served.post("/v1/states", name="from-session", session="to-state")
    more = {"prompt": " and", "max_tokens": 4, "temperature": 0}
    second = served.post("/v1/completions", model="student:from-session", **more)["choices"][0]["text"]
    assert second == served.lm.generate("Mira has 3 red" + first + " and", max_new_tokens=4, temperature=0)
    served.http.delete("/v1/states/from-session")


def test_a_state_of_another_base_needs_an_override(served, states, tmp_path):
    save_state(tmp_path / "s.safetensors", states["calm"], metadata={"base_model_hash": "0" * 64})
    data = (tmp_path / "s.safetensors").read_bytes()
    told = served.http.put("/v1/states/foreign", content=data)
    assert told.status_code == 400
    assert "override=true" in told.json()["error"]["message"]
    error = served.refused(400, "/v1/completions", prompt="x", state=base64.b64encode(data).decode())
    assert "another" in error["message"] or "base model" in error["message"]
    assert served.http.put("/v1/states/foreign?override=true", content=data).status_code == 201
    assert served.http.get("/v1/states/foreign").json()["tuned_on"] == "0" * 64
    served.post("/v1/completions", model="student:foreign", prompt="x", max_tokens=1)
    served.http.delete("/v1/states/foreign")


def test_a_state_of_other_dimensions_is_refused(served, tmp_path):
    wrong = State(jnp.zeros((2, 8)), jnp.zeros((2, 8)), jnp.ones((2, 2, 4, 4)))
    save_state(tmp_path / "s.safetensors", wrong, metadata={})
    data = (tmp_path / "s.safetensors").read_bytes()
    answer = served.http.put("/v1/states/wrong", content=data)
    assert answer.status_code == 400
    assert "2 layers" in answer.json()["error"]["message"]
    error = served.refused(400, "/v1/completions", prompt="x", state={"data": base64.b64encode(data).decode()})
    assert "2 layers" in error["message"]


@pytest.mark.parametrize("data", [b"", b"not a state", b"PK\x03\x04broken", bytes(5000)])
def test_a_damaged_file_is_refused_without_a_path(served, data):
    answer = served.http.put("/v1/states/damaged", content=data)
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert "/" not in message.replace("https://", "")
    assert served.http.get("/v1/states/damaged").status_code == 404


def test_files_that_others_put_into_the_folder_are_found(served, states, tmp_path):
    path = served.folder / "added.safetensors"
    save_state(path, states["wild"], metadata={})
    assert same(served.service.states.load("added").state, states["wild"])
    save_state(path, states["calm"], metadata={})
    assert same(served.service.states.load("added").state, states["calm"])
    path.write_bytes(b"damaged")
    (told,) = [one for one in served.http.get("/v1/states").json()["data"] if one["id"] == "added"]
    assert told["usable"] is False
    assert str(served.folder) not in told["reason"]
    assert "student:added" not in [model.id for model in served.openai.models.list()]
    path.unlink()
