"""Every reader of files from outside and from the project's own runs, with small sound files of its formats."""

import csv
import functools
import importlib.util
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from rwkv7_jax import RWKV7Config, State
from rwkv7_jax.checkpoint import export_state, load, load_state, pth, rwkv_cpp, safetensors, save, save_state
from rwkv7_jax.checkpoint.names import VECTOR, expected_shapes, flat_to_params
from rwkv7_jax.checkpoint.state_layouts import LAYOUTS
from state_tuning.observer import Maps, Observer, load_observer, save_observer
from tests.malformed import mutate, run_files
from tests.malformed.mutate_torch import SEALED, TORCH
from tests.malformed.sandbox import Reader, bytes_of

SMALL = RWKV7Config(5, 2, 4, 2, 3, 2, 2, 2, 2)
ONE_LAYER = RWKV7Config(5, 1, 4, 2, 3, 2, 2, 2, 2)


def weights(seed: int = 0, dtype: type = np.float32, config: RWKV7Config = SMALL) -> dict[str, np.ndarray]:
    """Returns released names and shapes with random numbers."""
    rng = np.random.default_rng(seed)
    flat = {name: rng.standard_normal(shape).astype(dtype) for name, shape in expected_shapes(config).items()}
    return {name: x.reshape(1, 1, -1) if VECTOR.fullmatch(name) else x for name, x in flat.items()}


def fla_weights() -> dict[str, np.ndarray]:
    """Returns random weights by fla's names."""
    top = {
        "emb.weight": "model.embeddings.weight",
        "ln_out.weight": "model.norm.weight",
        "ln_out.bias": "model.norm.bias",
        "head.weight": "lm_head.weight",
    }
    parts = {"ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm", "att": "attn", "ffn": "ffn"}
    heads = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "ln_x": "g_norm"}
    lora = {"1": "0.weight", "2": "2.weight", "0": "2.bias"}
    out = {}
    for name, array in weights().items():
        if name in top:
            out[top[name]] = array
            continue
        _, layer, part, *rest = name.split(".")
        if part == "att" and len(rest[0]) == 2 and rest[0][1] in lora:
            rest, array = (
                [f"{rest[0][0]}_lora.lora", lora[rest[0][1]]],
                array.T if rest[0][1] != "0" else array.reshape(-1),
            )
        elif part == "att":
            rest = [heads.get(rest[0], rest[0]), *rest[1:]]
        out[".".join(["model.layers", layer, parts[part], *rest])] = array
    return out


def a_state(seed: int = 0) -> State:
    """Returns a random state of `SMALL`, all of it not zero."""
    rng, (L, H, N) = np.random.default_rng(seed), (SMALL.n_layer, SMALL.n_head, SMALL.head_size)
    parts = (rng.standard_normal(shape).astype(np.float32) for shape in ((L, H * N), (L, H * N), (L, H, N, N)))
    return State(*parts)


def finite(value: object) -> None:
    """No state has numbers that are not finite."""
    state = value if isinstance(value, State) else value[0]
    assert all(np.isfinite(np.asarray(part)).all() for part in state), "a state that is not finite"


def an_observer() -> Observer:
    """Returns random maps between states of `SMALL` and of another model."""
    rng = np.random.default_rng(2)
    shapes = ((2, 2, 4, 3, 2), (2, 2, 4, 3, 2), (2, 2, 3, 3), (2, 2)), ((2, 2, 2, 2, 3), (2, 2, 2, 2, 3))
    up, down = ([rng.standard_normal(shape).astype(np.float32) for shape in one] for one in shapes)
    return Observer(Maps(np.asarray([0, 1], np.int32), *up), Maps(np.asarray([0, 1], np.int32), *down))


def finite_maps(value: object) -> None:
    """No observer has numbers that are not finite."""
    leaves = [leaf for leaf in jax.tree.leaves(value) if leaf is not None]
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in leaves), "maps that are not finite"


def model_at(name: str) -> Callable[[Path], object]:
    """Reads a model as every command does."""

    def read(folder: Path) -> object:
        config, params, report = load(folder / name)
        assert all(line.isprintable() for line in str(report).split("\n")), "a report that is not printable"
        return config, params, report.weights_hash

    return read


def hashed(read: Callable[[Path], object], name: str, key: str) -> Callable[[Path], object]:
    """Reads as `read` does; tells too whether a safetensors file names the hash of its numbers."""

    def both(folder: Path) -> object:
        return read(folder), key in safetensors.read_tensors(folder / name)[1]

    return both


def without_hash(value: object, sound: object) -> bool:
    """Tells whether a file has lost the hash that it would have been checked by."""
    return value[-1] is False


def models() -> Iterator[Reader]:
    """Checkpoints."""
    torch = bytes_of("m.pth", lambda path: pth.write(path, weights(config=ONE_LAYER)))
    other = bytes_of(
        "m.pth", lambda path: pth.write(path, {f"model.{n}": a for n, a in weights(1, np.float16).items()})
    )
    tensors = bytes_of("m.safetensors", lambda path: save(path, flat_to_params(weights())))
    plain = bytes_of("m.safetensors", lambda path: safetensors.write(path, weights(1)))
    fla = bytes_of("m.safetensors", lambda path: safetensors.write(path, fla_weights()))
    cpp = bytes_of("m.bin", lambda path: rwkv_cpp.write(path, weights()))
    half = bytes_of("m.bin", lambda path: rwkv_cpp.write(path, weights(1), "FP16"))
    state = bytes_of("s.pth", lambda path: export_state(path, a_state(), layout="fla", drop_shifts=True))
    yield Reader("model .pth", model_at("m.pth"), {"m.pth": torch}, {"m.pth": TORCH}, SEALED, (other, state, tensors))
    yield Reader(
        "model .safetensors",
        hashed(model_at("m.safetensors"), "m.safetensors", "weights_hash"),
        {"m.safetensors": tensors},
        {"m.safetensors": mutate.SAFETENSORS},
        SEALED,
        (plain, fla, torch),
        allowed=without_hash,
    )
    yield Reader(
        "model rwkv.cpp", model_at("m.bin"), {"m.bin": cpp}, {"m.bin": mutate.BINARY}, frozenset(), (half, tensors)
    )
    yield Reader(
        "model rwkv.cpp FP16", model_at("m.bin"), {"m.bin": half}, {"m.bin": mutate.BINARY}, frozenset(), (cpp, tensors)
    )
    yield folder_model()


def folder_model() -> Reader:
    """A Hugging Face folder of two shards."""
    tensors = sorted(fla_weights().items())
    shards = [dict(tensors[:30]), dict(tensors[30:])]
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {"metadata": {"total_size": 1000}, "weight_map": {n: names[i] for i in (0, 1) for n in shards[i]}}
    config = {"model_type": "rwkv7", "architectures": ["RWKV7ForCausalLM"], "hidden_act": "sqrelu", "hidden_size": 4,
        "norm_eps": 1e-5, "head_dim": 2, "num_heads": 2, "tie_word_embeddings": False, "torch_dtype": "float32",
        "vocab_size": 5}  # fmt: skip
    files = {
        "hf/config.json": json.dumps(config).encode(),
        "hf/model.safetensors.index.json": json.dumps(index).encode(),
    }
    files |= {
        f"hf/{name}": bytes_of("x", lambda path, t=shard: safetensors.write(path, t))
        for name, shard in zip(names, shards, strict=True)
    }
    targets: dict[str, Sequence[mutate.Mutator]] = {
        name: mutate.JSON if name.endswith(".json") else mutate.SAFETENSORS for name in files
    }
    return Reader("Hugging Face folder", model_at("hf"), files, targets, frozenset(), tuple(files.values()))


def states() -> Iterator[Reader]:
    """State files of every layout."""
    own = bytes_of(
        "s.safetensors",
        lambda path: save_state(
            path, a_state(), metadata={"method": "standard", "base_model_hash": "0" * 64, "config": {"a": 1}}
        ),
    )
    small = bytes_of(
        "s.safetensors", lambda path: save_state(path, a_state(), metadata={"method": "x"}, rank=2, dtype="int8")
    )
    others = [bytes_of("s.pth", lambda path: export_state(path, a_state(1), layout="web-rwkv", drop_shifts=True)), own]

    def reading(name: str, layout: str | None) -> Callable[[Path], object]:
        return lambda folder: load_state(folder / name, layout=layout, config=SMALL, base_model_hash="1" * 64).state

    for name, data in (("own", own), ("small", small)):
        yield Reader(
            f"state, {name}",
            reading("s.safetensors", None),
            {"s.safetensors": data},
            {"s.safetensors": mutate.SAFETENSORS},
            SEALED,
            others,
            finite,
        )
    yield Reader(
        "observer",
        lambda folder: [leaf for maps in load_observer(folder / "o.safetensors").observer for leaf in maps],
        {
            "o.safetensors": bytes_of(
                "o.safetensors", lambda path: save_observer(path, an_observer(), "a", "b", every=4)
            )
        },
        {"o.safetensors": mutate.SAFETENSORS},
        SEALED,
        others,
        finite_maps,
    )
    for layout in LAYOUTS:
        for suffix, mutators in ((".pth", TORCH), (".st", mutate.SAFETENSORS)):
            name = f"s{suffix}"
            read = reading(name, layout)
            data = bytes_of(
                name, lambda path, layout=layout: export_state(path, a_state(), layout=layout, drop_shifts=True)
            )
            yield Reader(
                f"state {layout} {suffix}",
                read if suffix == ".pth" else hashed(read, name, "state_hash"),
                {name: data},
                {name: mutators},
                SEALED,
                others,
                finite,
                without_hash if suffix == ".st" else lambda value, sound: False,
            )


def tokenizers() -> Iterator[Reader]:
    """tokenizer.json with the configs beside it, and the World vocabulary."""
    from rwkv7_jax.tokenizer import load_tokenizer

    text = "The colour of the\nstone, ää 猫 <|endoftext|>"

    def encoded(path: Path) -> object:
        tokenizer = load_tokenizer(path)
        ids = tokenizer.encode(text)
        after = [getattr(tokenizer, "encode_after", len)(text), getattr(tokenizer, "decode_bytes_after", len)(ids)]
        ends = tokenizer.eos_id, getattr(tokenizer, "end_ids", ()), tokenizer.vocab_size
        return ids, tokenizer.decode(ids), tokenizer.decode_bytes([0, 3, *ids, 10**6]), after, ends

    vocabulary = [f"{i + 1} {bytes([i])!r} 1" if i > 127 else f"{i + 1} {chr(i)!r} 1" for i in range(256)]
    vocabulary += ["257 'the' 3", "258 ' of' 3", "259 '猫' 3", "260 b'\\xe7\\x8c' 2", "261 '\\n\\n' 2", '262 "it\'s" 4']
    world = ("\n".join(vocabulary) + "\n").encode()
    yield Reader(
        "World vocabulary",
        lambda folder: _fresh(encoded, folder / "v.txt"),
        {"v.txt": world},
        {"v.txt": (*mutate.TEXT, *(literals,) * 8)},
    )
    for name, data, targets in _json_tokenizers():
        yield Reader(name, lambda folder: encoded(folder), data, targets, frozenset(), tuple(data.values()))


def _fresh(read: Callable[[Path], object], path: Path) -> object:
    """Reads a vocabulary as if for the first time, without the released one beside it, which takes 0.3 s to read."""
    from rwkv7_jax.tokenizer import world

    world.load_tables.cache_clear()
    world.find_vocabulary = _nothing
    return read(path)


def _nothing() -> Path:
    raise FileNotFoundError


def literals(rng, data: bytes) -> bytes:
    """Another id, literal or length on a line of a World vocabulary."""
    rows = data.split(b"\n")
    at = rng.randrange(len(rows) - 1)
    token, rest = rows[at].split(b" ", 1)
    literal, size = rest.rsplit(b" ", 1)
    odd = [b"'", b"''", b"b''", b"'\\'", b"'\\x'", b"'\\d'", b"'\\N{DIGIT ONE}'", b"f'{1}'", b"'a'*10**9",
        b"9**9**9", b"1", b"()", b"('a','b')", b"__import__('os').system('touch owned')", b"'a' 'b'",
        b"u'a'", b"b'\xc3\xa4'", b"-" * 5000 + b"1", b"(" * 300 + b")" * 300, b"'\\ud800'", b"{'a'}",
        b"'a'.b", b"lambda: 0", b"[x for x in y]", b"'" + b"x" * 5000 + b"'", b"1_0", b"'\\u202e'",
        b"None", b"b'a'+b'b'", b"1j", b"..."]  # fmt: skip
    odd_numbers = [
        b"0",
        b"-1",
        b"1e3",
        b"",
        b"99999999999999999999",
        b"65536",
        b"9" * 5000,
        b"0x1",
        b"1_0",
        b"+1",
        "٣".encode(),
        b"\x1b",
        b"True",
    ]
    kind = rng.randrange(3)
    token = rng.choice(odd_numbers) if kind == 0 else token
    literal = rng.choice(odd) if kind == 1 else literal
    size = rng.choice(odd_numbers) if kind == 2 else size
    rows[at] = token + b" " + literal + b" " + size
    return b"\n".join(rows)


def _json_tokenizers() -> Iterator[tuple[str, dict[str, bytes], dict[str, Sequence[mutate.Mutator]]]]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    configs = {
        "tokenizer_config.json": json.dumps(
            {
                "eos_token": {"content": "<|endoftext|>", "special": True},
                "model_max_length": 10**30,
                "chat_template": "{{ x }}",
            }
        ).encode(),
        "generation_config.json": json.dumps(
            {"eos_token_id": [0, 5], "bos_token_id": 1, "max_new_tokens": 20, "do_sample": True}
        ).encode(),
    }
    words = ["the colour of the stone is grey", "the leaf is green", "it is", "ää"]
    for kind in ("byte-level", "spiece"):
        tokenizer = Tokenizer(
            models.BPE(unk_token=None if kind == "byte-level" else "<unk>", byte_fallback=kind != "byte-level")
        )
        special = ["<|endoftext|>", "<|im_end|>", "<unk>"]
        if kind == "byte-level":
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            trainer = trainers.BpeTrainer(
                vocab_size=290,
                special_tokens=special,
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            )
        else:
            tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            tokenizer.decoder = decoders.Sequence(
                [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
            )
            trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=special, show_progress=False)
        tokenizer.train_from_iterator(words, trainer)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
        files = {"tokenizer.json": tokenizer.to_str().encode(), **configs}
        yield f"tokenizer.json, {kind}", files, {"tokenizer.json": mutate.JSON}
    yield "tokenizer configs", files, dict.fromkeys(configs, mutate.JSON)


def data_files() -> Iterator[Reader]:
    """A user's jsonl and the files of benchmarks."""
    from experiments.config.data_info import ExamplesConfig
    from experiments.data import info, info_report, jsonl, parquet
    from rwkv7_jax.tokenizer import ByteTokenizer

    pairs = _lines({"prompt": f"Question {i}?\n", "completion": f" answer {i} ä"} for i in range(6))
    texts = _lines({"text": f"User: {i}\n\nAssistant: {i * i}"} for i in range(6))
    yield Reader(
        "jsonl",
        lambda folder: [tuple(p) for p in jsonl.read_pairs(folder / "d.jsonl")],
        {"d.jsonl": pairs + texts},
        {"d.jsonl": mutate.JSON_LINES},
        frozenset(),
        (texts,),
    )
    turns = _lines(
        {"messages": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "b"}]} for i in range(4)
    )
    turns += _lines(
        {"conversations": [{"from": "human", "value": "ä"}, {"from": "gpt", "value": f"{i}"}]} for i in range(3)
    )
    turns += _lines({"instruction": f"Add {i}.", "input": "2", "output": "3"} for i in range(3))
    yield Reader(
        "jsonl of turns",
        lambda folder: [tuple(p) for p in jsonl.read_pairs(folder / "d.jsonl")],
        {"d.jsonl": turns},
        {"d.jsonl": mutate.JSON_LINES},
        frozenset(),
        (pairs,),
    )

    def examined(folder: Path) -> list[str]:
        found = info.examine(folder / "d.jsonl", ExamplesConfig(), ByteTokenizer())
        told = [*info_report.describe(found, "byte"), *(one.line for one in info_report.findings(found))]
        assert all(line.isprintable() for line in told[1:]), "a line that is not printable"
        return told

    mutators = {"d.jsonl": mutate.JSON_LINES}
    yield Reader("data info", examined, {"d.jsonl": pairs + texts + turns}, mutators, frozenset(), (texts,))
    gsm = _lines({"question": f"How many are {i}?", "answer": f"It is {i}.\n#### {i}"} for i in range(5))
    arc = _lines(
        {
            "id": f"a{i}",
            "question": {"stem": f"Which {i}?", "choices": [{"text": c * 2, "label": c} for c in "ABCD"]},
            "answerKey": "ABCD"[i],
        }
        for i in range(4)
    )
    wino = _lines(
        {
            "qID": str(i),
            "sentence": f"The cup {i} was bigger than the box because _ was big.",
            "option1": "cup",
            "option2": "box",
            "answer": str(1 + i % 2),
        }
        for i in range(4)
    )
    out = io.StringIO()
    csv.writer(out).writerows([[f"What, is {i}?\nSay", "a", "b", 'c "q"', "d", "ABCD"[i % 4]] for i in range(6)])
    mmlu = out.getvalue().encode()
    for dataset, split, name, data, mutators in (("gsm8k", "test", "gsm8k/test.jsonl", gsm, mutate.JSON_LINES),
        ("arc", "test", "ARC-Challenge-Test.jsonl", arc, mutate.JSON_LINES), ("winogrande", "validation",
        "winogrande/dev.jsonl", wino, mutate.JSON_LINES), ("mmlu", "test", "test/anatomy_test.csv", mmlu,
        mutate.TEXT), ):  # fmt: skip
        read = functools.partial(_benchmark, dataset, split)
        yield Reader(f"{dataset} file", read, {name: data}, {name: mutators}, frozenset(), (gsm, arc, wino, mmlu))
    if not importlib.util.find_spec("pyarrow"):
        return
    for suffix, read in ((".parquet", parquet.read_parquet), (".arrow", parquet.read_arrow)):
        data = bytes_of(f"x{suffix}", _write_table, forked=True)
        rows = functools.partial(_rows, read, f"d{suffix}")
        yield Reader(f"{suffix} file", rows, {f"d{suffix}": data}, {f"d{suffix}": mutate.BINARY})


def _benchmark(dataset: str, split: str, folder: Path) -> object:
    from experiments.data.load import load as load_benchmark

    return [tuple(line.record.items()) for line in load_benchmark(dataset, split, folder)]


def _rows(read: Callable[[Path], list], name: str, folder: Path) -> object:
    return [line.record for line in read(folder / name)]


def _write_table(path: Path) -> None:
    """Writes three rows with pyarrow, which starts threads."""
    import pyarrow as pa
    import pyarrow.parquet

    table = pa.table({"question": ["a", "b", "c"], "answer": ["#### 1", "#### 2", "#### 3"]})
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)


def _lines(rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def settings() -> Iterator[Reader]:
    """--config files, except .py, which are code."""
    from experiments.config.loading import load_config

    toml = b"""base = "jsonl"
name = "mine"
seed = 3

[tune]
steps = 40 # few
learning_rate = 0.1

[data]
train = "a.jsonl"
batch_size = 4

[method]
kind = "upscale"

[system]
tensorboard = false
"""
    table = {
        "base": "jsonl",
        "name": "mine",
        "seed": 3,
        "tune": {"steps": 40, "learning_rate": 0.1},
        "data": {"train": "a.jsonl", "batch_size": 4},
        "method": {"kind": "dbp"},
    }
    for name, data, mutators in (
        ("c.toml", toml, mutate.TEXT),
        ("c.json", json.dumps(table, indent=1).encode(), mutate.JSON),
    ):
        yield Reader(
            f"--config .{name[2:]}",
            lambda folder, name=name: load_config(str(folder / name)),
            {name: data},
            {name: mutators},
            frozenset(),
            (b'base = "c.toml"', b'{"base": "c.json"}'),
        )


def replays() -> Iterator[Reader]:
    """Answers of teachers."""
    from state_tuning.test_time_scaling.teacher.replay import Replay

    def write(path: Path) -> None:
        replay = Replay(path)
        for i in range(4):
            replay.put(
                {"prompt": [i]},
                {"choices": [{"text": f"answer {i}", "finish_reason": "stop"}], "usage": {"prompt_tokens": i}},
            )

    data = bytes_of("r.jsonl", write)
    yield Reader(
        "replay file",
        lambda folder: list(Replay(folder / "r.jsonl")._answers.items()),
        {"r.jsonl": data},
        {"r.jsonl": mutate.JSON_LINES},
        run_files.ACCIDENTS,
        allowed=run_files.part_of,
    )


def every() -> list[Reader]:
    """All readers."""
    groups = (models, states, tokenizers, data_files, settings, replays, run_files.readers)
    return [reader for group in groups for reader in group()]
