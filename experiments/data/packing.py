"""The pocket world's text as packed rows, endless, resumable, each process making only what its devices need."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from experiments.build import ASSETS
from experiments.config.pretraining import PackingConfig
from experiments.pocket import text
from rwkv7_jax.processes import gather
from rwkv7_jax.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    import grain

Arrays = dict[str, Int[np.ndarray, "B T"]]


def pocket_tokenizer() -> Tokenizer:
    """Loads the tokenizer that ships with the pocket world."""
    return load_tokenizer(str(ASSETS / "tokenizer.json"))


class Batches:
    """Endless iterator of {tokens, tokens_segment_ids, tokens_positions}, int32 [rows, T+1] each.

    Documents are packed whole by first fit; segment 0 is padding. A batch is made of `config.streams` equal packings of
    disjoint documents, so that the same rows come out whatever the number of processes.
    rows: the rows of each batch to return; None is all. Only the packings that hold them are made.
    """

    def __init__(self, config: PackingConfig, seed: int, rows: Sequence[int] | None = None):
        each = config.batch_size // config.streams
        self.rows = range(config.batch_size) if rows is None else rows
        needed = sorted({row // each for row in self.rows})
        self.streams = {stream: _packed(config, seed, stream, each) for stream in needed}
        self._at = [needed.index(row // each) * each + row % each for row in self.rows]

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Arrays:
        parts = [next(stream) for stream in self.streams.values()]
        return {name: np.concatenate([part[name] for part in parts])[self._at] for name in parts[0]}

    def get_state(self) -> dict[str, object]:
        """Returns the position of every packing, those of the other processes too, which have to ask at the same
        time."""
        own = {str(number): stream.get_state() for number, stream in self.streams.items()}
        return {number: state for part in gather(own) for number, state in part.items()}

    def set_state(self, state: dict[str, object]) -> None:
        """Goes to a position that `get_state` returned."""
        for number, stream in self.streams.items():
            position = state[str(number)]
            assert isinstance(position, dict)
            stream.set_state(position)


def _packed(config: PackingConfig, seed: int, stream: int, rows: int) -> "grain.DatasetIterator[Arrays]":
    """One packing, `rows` rows at a time."""
    import grain

    tokenizer, row = pocket_tokenizer(), config.length + 1

    def encode(index: int) -> dict[str, np.ndarray]:
        document = next(text.documents(seed * 10**9 + index))
        return {"tokens": np.asarray([*tokenizer.encode(document), tokenizer.eos_id][:row], np.int32)}

    source = grain.MapDataset.range(10**9)[stream :: config.streams]
    source = source.map(encode).to_iter_dataset(grain.ReadOptions(num_threads=0))
    packed = grain.experimental.FirstFitPackIterDataset(source, length_struct={"tokens": row}, num_packing_bins=rows)
    return iter(packed.batch(rows))
