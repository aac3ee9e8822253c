"""The pocket world's text as packed rows, endless, resumable, each process making only what its devices need."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.config.schema import PretrainConfig


def pocket_tokenizer() -> Any:
    """The tokenizer that ships with the pocket world."""
    from experiments.build import ASSETS
    from rwkv7_jax.tokenizer.tokenizers import load_tokenizer

    return load_tokenizer(str(ASSETS / "tokenizer.json"))


class Batches:
    """Endless iterator of {tokens, tokens_segment_ids, tokens_positions}, int32 [rows, T+1] each.

    Documents are packed whole by first fit; segment 0 is padding. A batch is made of `config.streams` equal packings of
    disjoint documents, so that the same rows come out whatever the number of processes.
    rows: the rows of each batch to return; None is all. Only the packings that hold them are made.
    """

    def __init__(self, config: PretrainConfig, seed: int, rows: Sequence[int] | None = None):
        each = config.batch_size // config.streams
        self.rows = range(config.batch_size) if rows is None else rows
        needed = sorted({row // each for row in self.rows})
        self.streams = {stream: _packed(config, seed, stream, each) for stream in needed}
        self._at = [needed.index(row // each) * each + row % each for row in self.rows]

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, Any]:
        parts = [next(stream) for stream in self.streams.values()]
        return {name: np.concatenate([part[name] for part in parts])[self._at] for name in parts[0]}

    def get_state(self) -> dict[str, Any]:
        """The position of every packing, those of the other processes too, which have to ask at the same time."""
        from experiments.training import distributed

        own = {str(number): stream.get_state() for number, stream in self.streams.items()}
        return {number: state for part in distributed.gather(own) for number, state in part.items()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a position that `get_state` gave."""
        for number, stream in self.streams.items():
            stream.set_state(state[str(number)])


def _packed(config: PretrainConfig, seed: int, stream: int, rows: int) -> Any:
    """One packing, `rows` rows at a time."""
    import grain

    from experiments.pocket import text

    tokenizer, row = pocket_tokenizer(), config.length + 1

    def encode(index: int) -> dict[str, Any]:
        document = next(text.documents(seed * 10**9 + index))
        return {"tokens": np.asarray([*tokenizer.encode(document), tokenizer.eos_id][:row], np.int32)}

    source = grain.MapDataset.range(10**9)[stream :: config.streams]
    source = source.map(encode).to_iter_dataset(grain.ReadOptions(num_threads=0))
    packed = grain.experimental.FirstFitPackIterDataset(source, length_struct={"tokens": row}, num_packing_bins=rows)
    return iter(packed.batch(rows))
