"""Ways to damage bytes, text and JSON. Each takes a random generator and bytes, and returns bytes."""

import json
import random
import re
from collections.abc import Callable, Sequence

Mutator = Callable[[random.Random, bytes], bytes]

LENGTHS = (0, 1, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
NOT_UTF8 = (b"\xff", b"\xfe\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80")
ODD = (
    "\x00",
    "\x1b[31m",
    "\x07",
    "\u202e",
    "\u2066",
    "\u2028",
    "\x85",
    "\ufeff",
    "\r",
    "\t",
    "\U000e0041",
    "\u0301",
    "\x9b",
)
NUMBERS = (
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e999",
    b"-1",
    b"0",
    b"-0.0",
    b"1e-400",
    b"9" * 5000,
    b"2147483648",
    b"true",
)


def _place(rng: random.Random, data: bytes) -> int:
    return rng.randrange(len(data) + 1)


def _span(rng: random.Random, data: bytes) -> tuple[int, int]:
    start = _place(rng, data)
    return start, min(len(data), start + int(2 ** rng.uniform(0, 10)))


def flip(rng: random.Random, data: bytes) -> bytes:
    """Flips up to three bits."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3) if out else 0):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def noise(rng: random.Random, data: bytes) -> bytes:
    """Replaces a block by random bytes."""
    start, end = _span(rng, data)
    return data[:start] + rng.randbytes(end - start) + data[end:]


def zeros(rng: random.Random, data: bytes) -> bytes:
    """Replaces a block by zeros."""
    start, end = _span(rng, data)
    return data[:start] + bytes(end - start) + data[end:]


def truncate(rng: random.Random, data: bytes) -> bytes:
    """Cuts the end off."""
    return data[: _place(rng, data)]


def behead(rng: random.Random, data: bytes) -> bytes:
    """Cuts the beginning off."""
    return data[_span(rng, data)[0] % 64 :]


def remove(rng: random.Random, data: bytes) -> bytes:
    """Removes a block."""
    start, end = _span(rng, data)
    return data[:start] + data[end:]


def double(rng: random.Random, data: bytes) -> bytes:
    """Repeats a block."""
    start, end = _span(rng, data)
    return data[:end] + data[start:end] * rng.choice((1, 1, 2, 50)) + data[end:]


def swap(rng: random.Random, data: bytes) -> bytes:
    """Exchanges two neighbouring blocks."""
    start, middle = _span(rng, data)
    end = min(len(data), middle + int(2 ** rng.uniform(0, 10)))
    return data[:start] + data[middle:end] + data[start:middle] + data[end:]


def append(rng: random.Random, data: bytes) -> bytes:
    """Adds bytes at the end."""
    return data + rng.choice((b"\n", b"\0" * 100, rng.randbytes(50), data[:100]))


def length(rng: random.Random, data: bytes) -> bytes:
    """Writes a number that lengths and counts should not be, most often near the beginning or the end."""
    value, size = rng.choice(LENGTHS), rng.choice((1, 2, 4, 4, 8, 8))
    raw = (value % 256**size).to_bytes(size, rng.choice(("little", "little", "big")))
    near = rng.choice((len(data), min(len(data), 64), min(len(data), 600)))
    start = rng.randrange(near + 1)
    start = start if rng.random() < 0.7 else len(data) - start
    return data[:start] + raw + data[start + size :]


def empty(rng: random.Random, data: bytes) -> bytes:
    """Leaves nothing, or almost nothing."""
    return rng.choice((b"", b"\n", b"\0", b" ", data[:1]))


BINARY: tuple[Mutator, ...] = (flip, flip, flip, noise, zeros, truncate, truncate, behead, remove, double, swap,
    append, length, length, length, empty, )  # fmt: skip


def splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Joins the beginning of one file and the end of another, or puts a block of one into the other."""
    if rng.random() < 0.5:
        return data[: _place(rng, data)] + other[_place(rng, other) :]
    start, end = _span(rng, other)
    place = _place(rng, data)
    return data[:place] + other[start:end] + data[place + (end - start) * rng.randint(0, 1) :]


def bad_utf8(rng: random.Random, data: bytes) -> bytes:
    """Puts in bytes that are not UTF-8."""
    place = _place(rng, data)
    return data[:place] + rng.choice(NOT_UTF8) + data[place:]


def odd_characters(rng: random.Random, data: bytes) -> bytes:
    """Puts in control characters, marks of direction, line ends of other kinds."""
    place = _place(rng, data)
    return data[:place] + (rng.choice(ODD) * rng.choice((1, 1, 300))).encode() + data[place:]


def other_encoding(rng: random.Random, data: bytes) -> bytes:
    """Writes the text in another encoding, or after a byte order mark."""
    text = data.decode(errors="replace")
    encoding = rng.choice(("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "utf-7", "utf-8-sig"))
    return text.encode(encoding, errors="replace")


def odd_number(rng: random.Random, data: bytes) -> bytes:
    """Replaces a number."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?(e-?\d+)?", data[:100_000]))
    if not found:
        return data + b"1"
    match = rng.choice(found)
    return data[: match.start()] + rng.choice(NUMBERS) + data[match.end() :]


def nest(rng: random.Random, data: bytes) -> bytes:
    """Puts in brackets that are open, or open and closed, many times."""
    left, right = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"(", b")"), (b"-", b""), (b'"', b'"'), (b"[[", b"]]")))
    count, place = rng.choice((3, 100, 1000, 1000, 20_000)), _place(rng, data)
    middle = rng.choice((b"", b"1"))
    return data[:place] + left * count + middle + right * (count * rng.randint(0, 1)) + data[place:]


def long_text(rng: random.Random, data: bytes) -> bytes:
    """Puts in a long word."""
    place = _place(rng, data)
    return (
        data[:place]
        + rng.choice((b"x", b" ", b"9", b"\\", "\u202e".encode())) * rng.choice((1000, 50_000))
        + data[place:]
    )


def lines(rng: random.Random, data: bytes) -> bytes:
    """Removes, repeats, exchanges, joins or ends lines otherwise."""
    rows = data.split(b"\n")
    at, kind = rng.randrange(len(rows)), rng.randrange(6)
    if kind == 0:
        del rows[at]
    elif kind == 1:
        rows.insert(rng.randrange(len(rows)), rows[at])
    elif kind == 2:
        other = rng.randrange(len(rows))
        rows[at], rows[other] = rows[other], rows[at]
    elif kind == 3:
        return b"\r\n".join(rows)
    elif kind == 4:
        rows[at] = b""
    else:
        return data.replace(b"\n", rng.choice((b"\r", b"", b" ", b"\n\n")), rng.choice((1, -1)))
    return b"\n".join(rows)


TEXT: tuple[Mutator, ...] = (
    flip, noise, truncate, truncate, remove, double, swap, bad_utf8, odd_characters, odd_characters, other_encoding,
    odd_number, odd_number, nest, long_text, lines, lines, append, empty,
)  # fmt: skip

VALUES: tuple[object, ...] = (None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), 2**64, 10**400, 0.5, -0.0, 1e308,
    5e-324, float("nan"), float("inf"), -float("inf"), "", "0", "x", "x" * 5000, "\x1b[31mred\x07",
    "\u202eevil\u2066", "\ud800", "line\nbreak\u2028", "NaN", "../x", "/etc/passwd", [], {}, [[]], [None], {"": None},
    [1, "2", None], {"a": {"b": []}}, "\x00", ["x"] * 300, "ä" * 200, )  # fmt: skip


def damage_json(rng: random.Random, value: object) -> object:
    """Changes a JSON value: a part gets another type or name, or is missing or repeated."""
    places: list[tuple[dict | list, object]] = []

    def walk(node: object) -> None:
        if isinstance(node, dict):
            for key, part in node.items():
                places.append((node, key))
                walk(part)
        elif isinstance(node, list):
            for index, part in enumerate(node[:200]):
                places.append((node, index))
                walk(part)

    walk(value)
    if not places or rng.random() < 0.03:
        return rng.choice((*VALUES, [value], {"a": value}))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        node, key = rng.choice(places)
        kind = rng.randrange(10)
        if kind < 6:
            node[key] = json.loads(json.dumps(rng.choice(VALUES)))
        elif kind == 6 and (key in node if isinstance(node, dict) else key < len(node)):
            del node[key]
        elif kind == 7 and isinstance(node, dict):
            node[rng.choice((f"{key}x", "", "\x1b[2J", "\u202ekey", "x" * 3000))] = node.get(key)
        elif kind == 8:
            other, name = rng.choice(places)
            if name in other if isinstance(other, dict) else name < len(other):
                node[key] = json.loads(json.dumps(other[name]))
        elif isinstance(node, list):
            node *= rng.choice((2, 30))
        else:
            node[key] = [node.get(key)]
    return value


def json_document(rng: random.Random, data: bytes) -> bytes:
    """Damages the value of a JSON document."""
    return json.dumps(damage_json(rng, json.loads(data)), ensure_ascii=rng.random() < 0.8, indent=1).encode(
        errors="surrogatepass"
    )


def json_lines(rng: random.Random, data: bytes) -> bytes:
    """Damages the value of one line."""
    rows = data.splitlines(keepends=True)
    at = rng.randrange(len(rows))
    rows[at] = json.dumps(damage_json(rng, json.loads(rows[at])), ensure_ascii=rng.random() < 0.8).encode(
        errors="surrogatepass"
    )
    rows[at] += b"\n"
    return b"".join(rows)


def twice(rng: random.Random, data: bytes) -> bytes:
    """Names a key of a JSON object twice."""
    found = list(re.finditer(rb'"(\w+)": ?', data))
    if not found:
        return data
    one = rng.choice(found)
    return (
        data[: one.start()] + one[0] + rng.choice((b"1", b"null", b'"x"', b"[]", b"{}")) + b", " + data[one.start() :]
    )


JSON: tuple[Mutator, ...] = (*TEXT, twice, *(json_document,) * 15)
JSON_LINES: tuple[Mutator, ...] = (*TEXT, twice, *(json_lines,) * 15)


def with_header(change: Mutator) -> Mutator:
    """Returns a mutator of the JSON header of safetensors, whose length stays right."""

    def changed(rng: random.Random, data: bytes) -> bytes:
        size = int.from_bytes(data[:8], "little")
        header = change(rng, data[8 : 8 + size])
        return len(header).to_bytes(8, "little") + header + data[8 + size :]

    return changed


def offsets(rng: random.Random, data: bytes) -> bytes:
    """Writes other numbers into shapes and offsets of a safetensors header."""
    header = json.loads(data)
    names = [name for name in header if name != "__metadata__"]
    entry = header[rng.choice(names)]
    for _ in range(rng.randint(1, 2)):
        row = entry[rng.choice(("shape", "data_offsets"))]
        if row:
            row[rng.randrange(len(row))] = rng.choice((*LENGTHS, -1, 1.0, True, 3, 8, 16, "4", None))
        else:
            row.append(rng.choice(LENGTHS))
    if rng.random() < 0.2:
        entry["dtype"] = rng.choice(("F64", "F16", "BF16", "F8_E4M3", "I64", "U8", "BOOL", "F4", "", 5, "\x1b[2J"))
    return json.dumps(header).encode()


SAFETENSORS: tuple[Mutator, ...] = (*BINARY, *(with_header(json_document), ) * 6, *(with_header(offsets), ) * 6,
    with_header(nest), with_header(odd_characters), with_header(twice), with_header(bad_utf8),
    with_header(odd_number), with_header(remove), )  # fmt: skip


def damaged(rng: random.Random, data: bytes, mutators: Sequence[Mutator], others: Sequence[bytes]) -> tuple[bytes, str]:
    """Returns a damaged file, and the names of what was done to it."""
    names = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if others and rng.random() < 0.08:
            data, name = splice(rng, data, rng.choice(others)), "splice"
        else:
            one = rng.choice(mutators)
            try:
                data, name = one(rng, data), one.__name__
            except Exception:  # it needs a structure that earlier damage has destroyed
                data, name = flip(rng, data), "flip"
        names.append(name)
    return data, "+".join(names)
