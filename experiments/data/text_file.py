"""Text files of users, in the encodings in which they come."""

import gzip
import json
import zlib
from pathlib import Path

from experiments.config.overrides import UsageError

KINDS = {
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"PK\x03\x04": "a zip archive",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"\xfd7zXZ\x00": "compressed by xz",
    b"BZh": "compressed by bzip2",
    b"\x89HDF": "an HDF5 file",
    b"SQLite": "an SQLite file",
}
"""First bytes of files that are no text."""
GZIP = b"\x1f\x8b"
ADVICE = "if it is of Windows or Latin-1, convert it: iconv -f WINDOWS-1252 -t UTF-8"


def read_text(path: Path) -> str:
    """Reads UTF-8, UTF-16 or UTF-32, with or without a byte order mark, gzip or not; every line end becomes a newline.

    Raises:
      UsageError: one line with the path: no such file, no permission, another kind of file, not text.
    """
    return _plain_ends(_decoded(path, _read(path)))


def read_sound_lines(path: Path) -> tuple[str, list[str]]:
    """Reads a file as `read_text` does, lines that are not UTF-8 left empty.

    Returns:
      (the text, what is wrong with each of these lines).

    Raises:
      UsageError: as `read_text`, and where no line is left.
    """
    data = _read(path)
    try:
        return _plain_ends(_decoded(path, data)), []
    except UsageError:
        if json.detect_encoding(data) not in ("utf-8", "utf-8-sig"):
            raise
    wrong, lines = [], data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, line in enumerate(lines):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            wrong.append(f"{path}:{number + 1}: not UTF-8 text (byte {error.start} of the line); {ADVICE}")
            lines[number] = b""
    text = _plain_ends(b"\n".join(lines).decode())
    if not text.strip():
        _decoded(path, data)
    return text, wrong


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a folder; give a .jsonl file")
        if not path.is_file():
            raise UsageError(f"{path} is not a regular file" if path.exists() else f"no file {path}")
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})") from None
    if data.startswith(GZIP):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise UsageError(f"{path}: damaged gzip ({error})") from None
    for begin, kind in KINDS.items():
        if data.startswith(begin):
            raise UsageError(f"{path} is {kind}; write it as jsonl, one JSON object on each line")
    return data


def _plain_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _decoded(path: Path, data: bytes) -> str:
    encoding = json.detect_encoding(data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if not encoding.startswith("utf-8"):
            raise UsageError(f"{path}: neither UTF-8 nor {encoding.upper()} text (byte {error.start})") from None
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}: not UTF-8 text (byte {error.start}) in line {line}; {ADVICE}") from None
