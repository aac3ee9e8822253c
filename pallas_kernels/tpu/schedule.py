"""Interleaves packs of heads, so that one has work for the vector units while another waits for the matrix unit."""

from collections.abc import Generator, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pallas_kernels.tpu.packing import LANES, dot

Result = TypeVar("Result")


class Product(NamedTuple):
    """rows @ matrix, of 128 lanes at most, which may be computed beside that of another pack; operand: see `dot`."""

    rows: Array
    matrix: Array
    operand: np.dtype


Stages: TypeAlias = Generator[Product | None, Array | None, Result]
"""The computation of one pack, which yields after each stage: nothing, or a product whose value it is sent."""


@partial(jax.jit, static_argnames="operand")
def _both(rows: list[Array], matrices: list[Array], operand: np.dtype) -> tuple[Array, Array]:
    """Two products as one of 256 lanes: loading both matrices takes such a unit no longer than loading one."""
    found = dot(jnp.concatenate(rows, 0), jnp.concatenate(matrices, 1), operand)
    count, lanes = rows[0].shape[0], matrices[0].shape[1]
    return found[:count, :lanes], found[count:, lanes:]


def _multiplied(products: Sequence[Product], unit: int) -> list[Array]:
    """The values of products of one stage; unit: width of the matrix units."""
    beside = 2 if unit > LANES else 1
    found: list[Array] = []
    for i in range(0, len(products), beside):
        here = products[i : i + beside]
        if len(here) == 1:
            found.append(dot(*here[0]))
        else:
            found += _both([p.rows for p in here], [p.matrix for p in here], operand=here[0].operand)
    return found


def interleave(packs: Sequence[Stages], unit: int, starts: Sequence[int] | None = None) -> None:
    """Runs all generators to their ends, one stage of each after the other.

    starts: of each generator the round in which its first stage comes; None: all begin at once.
    """
    waiting = dict(enumerate(starts or [0] * len(packs)))
    running: dict[int, Array | None] = {}
    now = 0
    while waiting or running:
        running = dict(sorted((running | {i: None for i, start in waiting.items() if start <= now}).items()))
        waiting = {i: start for i, start in waiting.items() if start > now}
        asked: dict[int, Product | None] = {}
        for i, value in running.items():
            try:
                asked[i] = packs[i].send(value)
            except StopIteration:
                continue
        products = {i: product for i, product in asked.items() if product is not None}
        values = dict(zip(products, _multiplied(list(products.values()), unit), strict=True))
        running = {i: values.get(i) for i in asked}
        now += 1


def returned(stages: Stages[Result]) -> Result:
    """Returns what a generator returns that asks for no products."""
    while True:
        try:
            next(stages)
        except StopIteration as end:
            return end.value
