"""The prompts of each step: an endless Grain pipeline that can be put back to an earlier position."""

from typing import TYPE_CHECKING

import numpy as np

from experiments.config.overrides import UsageError
from state_tuning.reinforcement.learning import Asked
from state_tuning.reinforcement.sampling import Prompts

if TYPE_CHECKING:
    import grain


def prompt_batches(prompts: Prompts, batch_size: int, seed: int) -> "grain.DatasetIterator[Asked]":
    """Returns an endless iterator over batches of prompts, in an order that depends on the seed alone.

    Args:
      prompts: all of them.
      batch_size: prompts a batch.
      seed: of the order.

    Returns:
      The iterator; `get_state()` and `set_state()` save and restore its position.

    Raises:
      UsageError: there is no prompt.
    """
    import grain

    count = len(prompts.tokens)
    if not count:
        raise UsageError("no prompts to learn from")

    def one(number: int, index: np.ndarray) -> Asked:
        return Asked(prompts.take(np.asarray(index)), np.asarray(index), np.asarray(number, np.int32))

    dataset = grain.MapDataset.range(count).seed(seed).shuffle().repeat().batch(batch_size, drop_remainder=True)
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(dataset.map_with_index(one).to_iter_dataset(options))
