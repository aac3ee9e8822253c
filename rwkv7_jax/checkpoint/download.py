"""Files over HTTPS: kept, gone on with where they broke off, and complete or not there at all."""

import hashlib
import http.client
import os
import pathlib
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPMessage
from typing import Any
from urllib.parse import unquote, urlsplit

from tqdm import tqdm

from rwkv7_jax.checkpoint.files import CheckpointError, naming, one_line, write_text
from rwkv7_jax.locks import lock

BLOCK = 1 << 20
PATIENCE = 60.0
"""Seconds that a server may be silent."""
ETAG = ".etag"
"""Ends the name of the file that says which version of a file was read."""


def downloads() -> pathlib.Path:
    """Returns the folder of downloaded files, in the user's cache folder (XDG)."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path(home) if home else pathlib.Path.home() / ".cache") / "rwkv7-jax" / "downloads"


def download(address: str, folder: pathlib.Path | None = None) -> pathlib.Path:
    """Returns the file of an address on this machine; it is read again only where the server has another version.

    Args:
      address: of a file; a redirection to another scheme is refused.
      folder: where files are kept; None is `downloads()`.

    Returns:
      The whole file.

    Raises:
      CheckpointError: one line; the server has no such file, cannot be reached, or breaks off.
      OSError: the file cannot be written.
    """
    name = re.sub(r"[^\w.+-]", "_", pathlib.PurePosixPath(unquote(urlsplit(address).path)).name).lstrip(".")
    if not name:
        raise CheckpointError(f"{address}: names no file; give the address of a checkpoint")
    place = (folder or downloads()) / hashlib.sha256(address.encode()).hexdigest()[:16]
    with naming(place):
        place.mkdir(parents=True, exist_ok=True)
    path, part = place / name, place / f"{name}.part"
    with lock(path, "wait until that download ends"):
        etag = _text(path.with_name(path.name + ETAG)) if path.exists() else ""
        begin, version = (part.stat().st_size, _text(part.with_name(part.name + ETAG))) if part.exists() else (0, "")
        headers = {"Accept-Encoding": "identity", "User-Agent": "rwkv7-jax"}
        if path.exists():
            headers |= {"If-None-Match": etag} if etag else {}
        elif begin and version:
            headers |= {"Range": f"bytes={begin}-", "If-Range": version}
        try:
            _read(address, headers, path, part)
        except urllib.error.HTTPError as error:
            raise CheckpointError(
                f"{address}: the server answers {error.code} ({one_line(str(error.reason), 100)}); check the address"
            ) from None
        except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
            if path.exists():
                print(f"{one_line(address, 200)} cannot be reached; the copy from before is used", file=sys.stderr)
                return path
            reason = one_line(str(getattr(error, "reason", error)) or type(error).__name__, 200)
            raise CheckpointError(f"{address}: cannot be reached ({reason}); check the network") from None
    return path


class _SameScheme(urllib.request.HTTPRedirectHandler):
    """Follows no redirection from https:// to anything else."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """Returns what to ask next."""
        if urlsplit(newurl).scheme != urlsplit(req.full_url).scheme:
            fp.close()
            raise CheckpointError(f"{req.full_url}: leads to {newurl!r:.100}, which is another kind of address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _read(address: str, headers: Mapping[str, str], path: pathlib.Path, part: pathlib.Path) -> None:
    """Reads a file to its end and puts it in its place, unless the same version is there."""
    try:
        asked = urllib.request.Request(address, headers=dict(headers))
        response = urllib.request.build_opener(_SameScheme).open(asked, timeout=PATIENCE)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.NOT_MODIFIED:
            return
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or "Range" not in headers:
            raise
        part.unlink()
        plain = {name: text for name, text in headers.items() if name not in ("Range", "If-Range")}
        _read(address, plain, path, part)
        return
    with response:
        goes_on = response.status == http.HTTPStatus.PARTIAL_CONTENT
        begin = part.stat().st_size if goes_on else 0
        length = response.headers.get("Content-Length")
        total = begin + int(length) if length and length.isdecimal() else None
        etag = response.headers.get("ETag") or ""
        if path.exists() and not headers.get("If-None-Match") and total == path.stat().st_size:
            return
        strong = "" if etag.startswith("W/") else etag
        write_text(part.with_name(part.name + ETAG), strong)
        with naming(path), part.open("ab" if goes_on else "wb") as file:
            bar = tqdm(total=total, initial=begin, desc=path.name, unit="B", unit_scale=True, disable=None, leave=False)
            with bar:
                while block := response.read(BLOCK):
                    file.write(block)
                    bar.update(len(block))
            file.flush()
            os.fsync(file.fileno())
    size = part.stat().st_size
    if total is not None and size < total:
        again = "the same command goes on from there" if strong else "the same command begins anew"
        raise CheckpointError(f"{address}: broke off after {size:,} of {total:,} bytes; {again}")
    part.with_name(part.name + ETAG).unlink(missing_ok=True)
    os.replace(part, path)
    write_text(path.with_name(path.name + ETAG), etag)


def _text(path: pathlib.Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""
