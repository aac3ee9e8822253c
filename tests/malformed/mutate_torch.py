"""Ways to damage torch's zip files: the pickle by instructions, the zip file by entries, all checksums right."""

import functools
import io
import pickletools
import random
import re
import struct
import zipfile

from tests.malformed.mutate import BINARY, LENGTHS, Mutator

CALLS = (b"cos\nsystem\nX\x0b\x00\x00\x00touch owned\x85R",
    b"\x8c\x05posix\x8c\x06system\x93X\x0b\x00\x00\x00touch owned\x85R",
    b"cbuiltins\neval\nX\x03\x00\x00\x001+1\x85R", b"(cos\nsystem\nX\x02\x00\x00\x00lso",
    b"(X\x02\x00\x00\x00lsios\nsystem\n", b"csubprocess\nPopen\nX\x02\x00\x00\x00ls\x85\x81", b"cnumpy\nload\n",
    b"ctorch\nload\n", b"ctorch.storage\n_load_from_bytes\n", b"ccodecs\nencode\n", b"c__main__\nx\n",
    b"ctorch._utils\n_rebuild_tensor\n", b"cbuiltins\ngetattr\n", b"c\xff\n\n", b"c" + b"x" * 9000 + b"\ny\n",
    b"ca\n\x1b[2J\n", b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00", b"Pid\n", b"}}b", b"cos\nsystem\n)R",
    b"ctorch\nSize\n)R", b"ccollections\nOrderedDict\n(]tR", b"ctorch._utils\n_rebuild_tensor_v2\n)R",
    b"ctorch._utils\n_rebuild_parameter\n(NNNtR", )  # fmt: skip
VALUES = (b"N", b"\x88", b"K\x00", b"J\xff\xff\xff\xff", b"]", b"}", b")", b"(", b"0", b"1", b"2", b"t", b"l", b"d",
    b"Q", b"R", b"b", b"G\x7f\xf0\x00\x00\x00\x00\x00\x00", b"\x8a\x09" + b"\xff" * 8 + b"\x7f",
    b"\x8a\xff" + b"\x7f" * 255, b"\x8b\xff\xff\xff\x7f", b"X\x00\x00\x00\x00", b"X\xff\xff\xff\xff",
    b"X\x02\x00\x00\x00\xff\xfe", b"X\x05\x00\x00\x00\x1b[2Jx", b"\x8d" + b"\xff" * 8,
    b"\x8e\x00\x00\x00\x00\x01\x00\x00\x00", b"B\x03\x00\x00\x00abc", b"C\x03abc", b"\x94", b"q\x00", b"h\x00",
    b"r\xff\xff\xff\x7f", b"j\x00\x00\x00\x80", b"p123\n", b"g0\n", b"I999999999999\n", b"L5L\n", b"F1e999\n",
    b"S'a'\n", b"V\\u202e\n", b"\x95" + b"\xff" * 8, b"\x8f", b"\x90", b"\x91", b"\x92", b"\x80\x05",
    b"\x96\x04" + b"\x00" * 7 + b"abcd", b"\x97", b"\x98", )  # fmt: skip


def _loops(rng: random.Random) -> bytes:
    """A program that asks for more work than its length tells."""
    count = rng.choice((10, 60, 5000))
    return rng.choice(
        (
            b"]q\x00" + b"h\x00\x86q\x00" * count,
            b"]q\x00" + b"h\x00h\x00\x87q\x00" * count,
            b"]" + b"q\x00h\x00a" * count,
            b"(" * count + b"t" * rng.randint(0, count),
            b")" + b"\x85" * count,
            b"}q\x00" + b"h\x00h\x00s" * count,
            b"](" + b"K\x01" * 10 * count + b"eq\x00ctorch\nSize\nq\x01" + b"h\x01h\x00\x85R0" * count,
            b"]" + b"\x94" * 10 * count,
            b"](" + b"K\x00" * 10 * count + b"e",
            b"}(" + b"".join(struct.pack("<cIcI", b"J", i, b"J", i) for i in range(count)) + b"u",
            b"](" + b"]" * count + b"e" + b"2" * count,
        )
    )


@functools.lru_cache(4)
def _instructions(data: bytes) -> tuple[bytes, ...]:
    starts = [at for _, _, at in pickletools.genops(data) if at is not None]
    return tuple(data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True))


def program(rng: random.Random, data: bytes) -> bytes:
    """Removes, repeats, exchanges, replaces or adds instructions of a pickle."""
    ops = list(_instructions(data))
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, kind = rng.randrange(len(ops)), rng.randrange(9)
        if kind == 0:
            del ops[at : at + rng.choice((1, 1, 5, 40))]
            ops = ops or [b"."]
        elif kind == 1:
            ops[at:at] = ops[at : at + rng.choice((1, 10, 40))] * rng.choice((1, 1, 30))
        elif kind == 2:
            other = rng.randrange(len(ops))
            ops[at], ops[other] = ops[other], ops[at]
        elif kind == 3:
            ops[at] = rng.choice(VALUES)
        elif kind == 4:
            ops.insert(at, rng.choice(VALUES))
        elif kind == 5:
            ops.insert(at, rng.choice(CALLS))
        elif kind == 6:
            ops.insert(at, _loops(rng))
        elif kind == 7:
            number = rng.choice((*LENGTHS, -1, -(2**31), 3, 7))
            ops[at] = b"\x8a\x0a" + number.to_bytes(10, "little", signed=True)
        else:
            ops = [b"\x80\x02", b"}", b"X\x01\x00\x00\x00w", _loops(rng), rng.choice((b"s.", b".", b"0."))]
    return b"".join(ops)[: 2**22]


@functools.lru_cache(4)
def _entries(data: bytes) -> tuple[tuple[str, bytes], ...]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return tuple((info.filename, archive.read(info)) for info in archive.infolist())


def _archive(entries: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file with right checksums; one of a name may be there twice."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, body in entries:
            archive.NameToInfo.pop(name, None)
            archive.writestr(name, body)
    return out.getvalue()


def pickled(rng: random.Random, data: bytes) -> bytes:
    """Another pickle in the zip file."""
    return _archive([(n, program(rng, b) if n.endswith("data.pkl") else b) for n, b in _entries(data)])


def pickled_bytes(rng: random.Random, data: bytes) -> bytes:
    """A pickle with damaged bytes in the zip file."""
    change = rng.choice(BINARY)
    return _archive([(n, change(rng, b) if n.endswith("data.pkl") else b) for n, b in _entries(data)])


NAMES = (
    "../evil",
    "/etc/evil",
    "m/../../evil",
    "..\\evil",
    "C:evil",
    "m/data/../0",
    "m/\x1b[2J",
    "m/\u202e",
    "m//data/0",
    "n/data.pkl",
    "m/",
    ".",
    "x" * 3000,
)


def entries(rng: random.Random, data: bytes) -> bytes:
    """Renames, repeats, removes, changes, compresses or reorders entries."""
    rows = list(_entries(data))
    at, kind = rng.randrange(len(rows)), rng.randrange(9)
    name, body = rows[at]
    if kind == 0:
        rows.insert(rng.randrange(len(rows) + 1), (name, rng.choice((body, b"", b"x" * 100))))
    elif kind == 1:
        del rows[at]
    elif kind == 2:
        rows.append((rng.choice(NAMES), body))
    elif kind == 3:
        rows[at] = (rng.choice(NAMES), body)
    elif kind == 4:
        rows[at] = (name, rng.choice(BINARY)(rng, body))
    elif kind == 5:
        other = rng.randrange(len(rows))
        rows[at], rows[other] = (name, rows[other][1]), (rows[other][0], body)
    elif kind == 6:
        return _archive(rows, rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)))
    elif kind == 7:
        rows += [(f"m/more/{i}", b"") for i in range(rng.choice((10, 300)))]
    else:
        rng.shuffle(rows)
    return _archive(rows)


FIELDS = {"central": (b"PK\x01\x02", ((4, 2), (6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2),
    (30, 2), (32, 2), (34, 2), (38, 4), (42, 4))), "local": (b"PK\x03\x04", ((4, 2), (6, 2), (8, 2), (14,
    4), (18, 4), (22, 4), (26, 2), (28, 2))), "end": (b"PK\x05\x06", ((4, 2), (6, 2), (8, 2), (10, 2),
    (12, 4), (16, 4), (20, 2)))}  # fmt: skip
"""Signature, and (offset, size) of the fields of each record of a zip file."""
ZIP64_END = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 2**40, 2**40, 2**62, 2**62)


def fields(rng: random.Random, data: bytes) -> bytes:
    """Writes sizes, places, flags, checksums and attributes of other entries or of no entry."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        signature, members = FIELDS[rng.choice(("central", "central", "local", "end"))]
        places = [match.start() for match in re.finditer(re.escape(signature), out)]
        if not places:
            continue
        place = rng.choice(places)
        at, size = rng.choice(members)
        at += place
        value = rng.choice(
            (*LENGTHS, 8, 0xA1FF0000, int.from_bytes(out[at : at + size], "little") + rng.choice((1, -1, 64)))
        )
        if rng.random() < 0.3:
            other = rng.choice(places) + at - place
            value = int.from_bytes(out[other : other + size], "little")
        out[at : at + size] = (value % 256**size).to_bytes(size, "little")
    return bytes(out)


def zip64(rng: random.Random, data: bytes) -> bytes:
    """Announces sizes of 64 bits, in the record at the end or in an entry."""
    end = data.rfind(b"PK\x05\x06")
    if rng.random() < 0.5:
        locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, rng.choice((end, 0, 2**62, 2**63)), 1)
        return data[:end] + ZIP64_END + locator + data[end:]
    place = data.find(b"PK\x01\x02")
    extra = struct.pack("<2H3Q", 1, 24, *(rng.choice(LENGTHS) for _ in range(3)))
    head = bytearray(data[place : place + 46])
    head[20:28], head[30:32], head[42:46] = b"\xff" * 8, struct.pack("<H", len(extra)), b"\xff" * 4
    name = int.from_bytes(head[28:30], "little")
    size = struct.pack("<L", int.from_bytes(data[end + 12 : end + 16], "little") + len(extra))
    body = data[:place] + head + data[place + 46 : place + 46 + name] + extra + data[place + 46 + name : end]
    return body + data[end : end + 12] + size + data[end + 16 :]


TORCH: tuple[Mutator, ...] = (
    *BINARY, *(pickled,) * 10, *(pickled_bytes,) * 3, *(entries,) * 5, *(fields,) * 5, zip64, zip64,
)  # fmt: skip
SEALED = frozenset(("flip", "noise", "zeros", "truncate"))
"""Accidents that checksums find."""
