"""Downloads from a real server on loopback: whole, gone on with, renewed, or one line."""

import contextlib
import http.server
import os

import numpy as np
import pytest

from rwkv7_jax.checkpoint import CheckpointError
from rwkv7_jax.checkpoint.download import download
from tests.loopback import served

BODY = np.random.default_rng(0).bytes(300_000)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one file as the test has set its server up; notes what was asked."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        server.asked.append(dict(self.headers))
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/model.pth")
            self.end_headers()
            return
        begin = 0
        if server.etag and self.headers.get("If-None-Match") == server.etag:
            self.send_response(304)
            self.end_headers()
            return
        if self.headers.get("Range") and self.headers.get("If-Range") == server.etag:
            begin = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        if begin and begin >= len(server.body):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        if server.etag:
            self.send_header("ETag", server.etag)
        if server.length:
            self.send_header("Content-Length", str(len(server.body) - begin))
        self.end_headers()
        end = len(server.body) if server.breaks is None else server.breaks
        with contextlib.suppress(OSError):
            self.wfile.write(server.body[begin:end])


@pytest.fixture
def server():
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.body, made.etag, made.length, made.breaks, made.asked = BODY, '"v1"', True, None, []
    made.url = f"http://127.0.0.1:{made.server_port}/a%20b/model.pth?x=1"
    with served(made):
        yield made


def test_a_file_is_read_once(server, tmp_path):
    path = download(server.url, tmp_path)
    assert path.name == "model.pth"
    assert path.read_bytes() == BODY
    assert download(server.url, tmp_path) == path
    assert server.asked[1]["If-None-Match"] == '"v1"'
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.pth", "model.pth.etag"]
    server.body, server.etag = BODY[::-1], '"v2"'
    assert download(server.url, tmp_path).read_bytes() == BODY[::-1]


def test_what_broke_off_is_gone_on_with(server, tmp_path):
    server.breaks = 100_000
    with pytest.raises(CheckpointError, match=r"broke off after 100,000 of 300,000 bytes; .* goes on from there"):
        download(server.url, tmp_path)
    assert not list(tmp_path.rglob("model.pth"))
    server.breaks = None
    assert download(server.url, tmp_path).read_bytes() == BODY
    assert server.asked[1]["Range"] == "bytes=100000-"


def test_another_version_is_not_joined_to_the_first(server, tmp_path):
    server.breaks = 100_000
    with pytest.raises(CheckpointError, match="broke off"):
        download(server.url, tmp_path)
    server.breaks, server.body, server.etag = None, BODY[::-1], '"v2"'
    assert download(server.url, tmp_path).read_bytes() == BODY[::-1]


def test_a_server_without_versions_begins_anew(server, tmp_path):
    server.breaks, server.etag = 100_000, ""
    with pytest.raises(CheckpointError, match="begins anew"):
        download(server.url, tmp_path)
    server.breaks = None
    path = download(server.url, tmp_path)
    assert path.read_bytes() == BODY
    assert "Range" not in server.asked[1]
    server.body = BODY + b"more"
    assert download(server.url, tmp_path).read_bytes() == BODY + b"more"


def test_a_part_that_is_longer_than_the_file_is_read_again(server, tmp_path):
    server.breaks = 100_000
    with pytest.raises(CheckpointError, match="broke off"):
        download(server.url, tmp_path)
    server.breaks, server.body = None, BODY[:50_000]
    assert download(server.url, tmp_path).read_bytes() == BODY[:50_000]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/missing/model.pth", r"the server answers 404 \(Not Found\); check the address"),
        ("/", "names no file"),
        ("/moved/model.pth", "leads to 'ftp://127.0.0.1/model.pth', which is another kind of address"),
    ],
)
def test_what_is_not_there_is_one_line(server, tmp_path, path, told):
    with pytest.raises(CheckpointError, match=told) as caught:
        download(f"http://127.0.0.1:{server.server_port}{path}", tmp_path)
    assert "\n" not in str(caught.value)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_without_a_network_the_copy_from_before_is_used(server, tmp_path, capsys):
    path = download(server.url, tmp_path)
    server.shutdown()
    server.server_close()
    assert download(server.url, tmp_path) == path
    assert "the copy from before is used" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"cannot be reached .* check the network"):
        download(server.url.replace("model", "other"), tmp_path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(server, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match=str(tmp_path)):
        download(server.url, tmp_path)
