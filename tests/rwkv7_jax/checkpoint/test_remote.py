"""Checkpoints by address: a hub on loopback stands for the real one, and no network is asked."""

import hashlib
import http.server
import json
import sys
import time

import pytest

from rwkv7_jax import LanguageModel
from rwkv7_jax.checkpoint import CheckpointError, load, pth, remote, safetensors
from rwkv7_jax.checkpoint.remote import HubPlace, fetched, hub_place, short_name
from tests.loopback import served

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("hf://owner/name", HubPlace("owner/name", None, None)),
        ("HF://owner/name/", HubPlace("owner/name", None, None)),
        ("hf://owner/name@v1/sub/a.pth", HubPlace("owner/name", "v1", "sub/a.pth")),
        ("https://huggingface.co/o/n/resolve/main/a%20b.pth?download=true", HubPlace("o/n", "main", "a b.pth")),
        ("https://huggingface.co/o/n/blob/main/a.pth", HubPlace("o/n", "main", "a.pth")),
        ("https://host/o/n/resolve/main/a.pth", None),
    ],
)
def test_addresses_are_told_apart(address, place):
    assert hub_place(address) == place


@pytest.mark.parametrize("address", ["hf://name", "hf://", "hf:///a/b"])
def test_a_hub_address_without_owner_and_name_is_one_line(address):
    with pytest.raises(CheckpointError, match="write hf://OWNER/NAME"):
        fetched(address)


def test_short_names():
    assert short_name("hf://owner/rwkv7-g1@main/model-0.1b.pth") == "model-0.1b"
    assert short_name("hf://owner/rwkv7-0.1b") == "rwkv7-0.1b"


def test_without_the_package_the_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r'needs huggingface_hub: pip install "rwkv7-jax\[hub\]"'):
        fetched("hf://owner/name")


class Hub(http.server.BaseHTTPRequestHandler):
    """What of the hub's API a download asks for."""

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path, repositories = self.path.partition("?")[0], self.server.repositories
        if path.startswith("/api/models/"):
            owner, name, *rest = path.removeprefix("/api/models/").split("/")
            files = repositories.get(f"{owner}/{name}")
            if files is None or rest[1:] not in ([], ["main"], [SHA]):
                self.refuse("RepoNotFound" if files is None else "RevisionNotFound")
                return
            siblings = [{"rfilename": file} for file in files]
            self.answer(json.dumps({"id": f"{owner}/{name}", "sha": SHA, "siblings": siblings}).encode())
            return
        owner, name, _, _, *file = path.removeprefix("/").split("/")
        data = repositories.get(f"{owner}/{name}", {}).get("/".join(file))
        if data is None:
            self.refuse("EntryNotFound" if f"{owner}/{name}" in repositories else "RepoNotFound")
            return
        self.answer(data)

    def answer(self, data):
        self.send_response(200)
        for name, text in (
            ("ETag", f'"{hashlib.sha256(data).hexdigest()}"'),
            ("X-Repo-Commit", SHA),
            ("Content-Length", str(len(data))),
        ):
            self.send_header(name, text)
        self.end_headers()
        if self.command == "GET":
            self.server.sent += 1
            self.wfile.write(data)

    def refuse(self, code):
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def hub(tmp_path, monkeypatch, make_flat):
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    pth.write(tmp_path / "a.pth", make_flat())
    safetensors.write(tmp_path / "a.safetensors", make_flat(), {"format": "pt"})
    weights, folder = (tmp_path / "a.pth").read_bytes(), (tmp_path / "a.safetensors").read_bytes()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.sent = 0
    server.repositories = {
        "owner/one": {"a.pth": weights, "README.md": b"one"},
        "owner/many": {"a.pth": weights, "b.pth": weights, "sub/c.pth": weights},
        "owner/folder": {"model.safetensors": folder, "config.json": b"{}", "README.md": b"x", "onnx/model.bin": b"x"},
        "owner/text": {"README.md": b"none"},
    }
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with served(server):
        yield server


@pytest.mark.parametrize("address", ["hf://owner/one", "hf://owner/one/a.pth", "hf://owner/many@main/sub/c.pth"])
def test_a_file_of_the_hub_is_read(hub, address, small):
    path = fetched(address)
    assert path.suffix == ".pth"
    assert load(path).config.n_layer == small.n_layer
    sent = hub.sent
    assert fetched(address) == path
    assert hub.sent - sent <= 1, "the list of files at most, and no file"


def test_of_a_folder_what_a_model_needs_is_read(hub, small):
    path = fetched("hf://owner/folder")
    assert sorted(file.name for file in path.iterdir()) == ["config.json", "model.safetensors"]
    assert load(path).config.n_embd == small.n_embd


def test_offline_what_was_read_before_is_used(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between attempts to reach the hub
    before = [fetched(address) for address in ("hf://owner/one", "hf://owner/one/a.pth", "hf://owner/folder")]
    hub.shutdown()
    hub.server_close()
    assert constants.ENDPOINT.startswith("http://127.0.0.1")
    after = [fetched(address) for address in ("hf://owner/one", "hf://owner/one/a.pth", "hf://owner/folder")]
    assert after == before
    for address in ("hf://owner/many/a.pth", "hf://owner/many"):
        with pytest.raises(CheckpointError, match=f"^{address}: cannot be reached, and is not in the cache"):
            fetched(address)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("hf://owner/none", "is not there, or private"),
        ("hf://owner/none/a.pth", "is not there, or private"),
        ("hf://owner/one/b.pth", "has no such file"),
        ("hf://owner/one@old", "has no such revision"),
        ("hf://owner/text", "holds no .safetensors and no .pth"),
        ("hf://owner/many", r"holds 2 checkpoints; name one: hf://owner/many/FILE \(a.pth, b.pth\)"),
        ("hf://owner/-name-", "is not a name on the hub"),
    ],
)
def test_what_is_not_there_is_one_line(hub, address, told):
    with pytest.raises(CheckpointError, match=told) as caught:
        fetched(address)
    assert "\n" not in str(caught.value)


def test_a_model_is_loaded_by_its_address(tmp_path, make_flat, monkeypatch):
    pth.write(tmp_path / "a.pth", make_flat())
    monkeypatch.setattr(remote, "download", lambda address: tmp_path / "a.pth")
    with pytest.raises(ValueError, match="vocabularies of 256"):
        LanguageModel.load("https://host/a.pth")
