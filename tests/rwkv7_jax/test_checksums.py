"""Objects that carry a checksum: read back, and nothing that was changed is taken for what was written."""

import json
import random

import pytest

from rwkv7_jax.checksums import seal, unseal

RECORDS = [{"loss": 2.5}, {}, {"key": "a", "nll": [1.0, 2e-9, None], "part": {"text": "石头 \n"}}]


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("indent", [None, 1])
def test_what_was_sealed_is_read_back_however_it_is_laid_out(record, indent):
    text = seal(json.dumps(record, indent=indent))
    assert text.startswith(('{"crc32": "', '{\n "crc32": "'))
    assert unseal(text) == record
    assert unseal(json.dumps(json.loads(text), indent=7, sort_keys=True).replace("\n", "\r\n").encode()) == record


def test_files_from_before_checksums_are_read():
    assert unseal(b'{"name": "gsm8k", "skipped": 0}') == {"name": "gsm8k", "skipped": 0}
    assert unseal('{\n "goodput": 0.5}') == {"goodput": 0.5}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "it is not JSON"),
        ("{" * 100_000, "it is not JSON"),
        ('{"key": ' + "[" * 100_000, "it is not JSON"),
        (b'{"key": "\xff"}', "it is not JSON"),
        ('{"key": 1' + "0" * 5000 + "}", "it is not JSON"),
        ("[1]", "it is not a JSON object"),
        ('{"loss": 2.5}', "it has no checksum"),
        ('{"crc32": "0222b320", "loss": 2.6}', "it differs from its checksum"),
        ('{"crc32": ["0222b320"], "loss": 2.5}', "it differs from its checksum"),
        ('{"crc32": "0222b320", "loss": NaN}', "it differs from its checksum"),
    ],
)
def test_what_is_wrong_is_said_in_a_few_words(text, told):
    with pytest.raises(ValueError, match=f"^{told}$"):
        unseal(text)


def test_no_damage_changes_what_is_read():
    record = {"name": "a", "nll": [1.25, 0.5, 17.0], "samples": [{"prompt": "2+2"}], "skipped": 0}
    text, rng = seal(json.dumps(record)).encode(), random.Random(0)
    for _ in range(3000):
        damaged, start = bytearray(text), rng.randrange(len(text))
        kind = rng.randrange(3)
        if kind == 0:
            for _ in range(rng.randint(1, 6)):
                damaged[rng.randrange(len(text))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del damaged[start : start + rng.randint(1, 40)]
        else:
            damaged[start : start + rng.randint(0, 9)] = rng.randbytes(rng.randint(0, 9))
        try:
            assert unseal(bytes(damaged)) == record
        except ValueError as error:
            assert str(error).startswith("it ")  # noqa: PT017
