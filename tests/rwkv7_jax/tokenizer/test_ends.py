"""End tokens that a checkpoint's folder names."""

import json

import pytest

from rwkv7_jax.tokenizer import ByteTokenizer, WorldTokenizer, load_tokenizer
from rwkv7_jax.tokenizer.abilities import end_ids
from rwkv7_jax.tokenizer.ends import read_end_ids


class Chat(ByteTokenizer):
    """A tokenizer with special tokens."""

    special_tokens = {0: "<|endoftext|>", 2: "<|im_end|>"}  # noqa: RUF012


def read(tmp_path, content):
    (tmp_path / "generation_config.json").write_text(content)
    return read_end_ids(tmp_path, Chat())


@pytest.mark.parametrize(
    ("content", "ids"),
    [
        ("{}", ()),
        ('{"eos_token_id": null}', ()),
        ('{"eos_token_id": 2}', (2,)),
        ('{"eos_token_id": [9, 0, 2, 2]}', (2, 9)),
        ('{"eos_token_id": [-1, 300, 9999]}', ()),
        ('{"_from_model_config": true, "eos_token_id": [2, 9]}', (2,)),
    ],
)
def test_ids_of_the_vocabulary_count(tmp_path, content, ids):
    assert read(tmp_path, content) == ids


@pytest.mark.parametrize("content", ["[]", "{", "", '{"eos_token_id": "2"}', '{"eos_token_id": [true]}', "[" * 99999])
def test_a_damaged_file_is_named(tmp_path, content):
    with pytest.raises(ValueError, match=r"generation_config\.json: not a") as caught:
        read(tmp_path, content)
    assert "\n" not in str(caught.value)


def test_a_checkpoints_folder_counts_for_any_tokenizer(tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 261]}))
    (tmp_path / "model.pth").touch()
    tokenizer = load_tokenizer("world", 65536, tmp_path / "model.pth")
    assert isinstance(tokenizer, WorldTokenizer)
    assert tokenizer.end_ids == (261,)
    assert tokenizer.decode([261]) == "\n\n"
    assert end_ids(load_tokenizer("world")) == frozenset()
    assert load_tokenizer("byte", 256, tmp_path / "model.pth").eos_id == 0
