"""Matrices that a file holds in another form than numbers: float32 where they are read, by rows."""

import abc

import numpy as np
from numpy.typing import DTypeLike


class LazyMatrix(abc.ABC):
    """A matrix [O, K] whose rows become float32 numbers when they are taken."""

    dtype, ndim = np.dtype(np.float32), 2

    def __init__(self, shape: tuple[int, int]):
        self.shape, self.size = shape, shape[0] * shape[1]

    @abc.abstractmethod
    def rows(self, taken: slice) -> np.ndarray:
        """Returns rows in float32."""

    def is_finite(self) -> bool:
        """Tells whether all numbers are finite, some rows at a time."""
        step = max(1, 2**20 // self.shape[1])
        return all(np.isfinite(self.rows(slice(at, at + step))).all() for at in range(0, len(self), step))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | tuple[slice, ...]) -> np.ndarray:
        """Returns rows, or slices of both axes, in float32; only the rows that are taken are converted."""
        if isinstance(index, int):
            return self.rows(slice(index, index + 1 or None))[0]
        taken, *rest = index if isinstance(index, tuple) else (index,)
        return self.rows(taken)[(slice(None), *rest)]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        whole = self.rows(slice(None))
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def reshape(self, *shape: int | tuple[int, ...]) -> "np.ndarray | LazyMatrix":
        """Returns itself where `shape` is its own, else the numbers in that shape."""
        if shape in (self.shape, (self.shape,)):
            return self
        return np.asarray(self).reshape(*shape)  # pyright: ignore[reportCallIssue, reportArgumentType]

    def astype(self, dtype: DTypeLike, copy: bool = True) -> np.ndarray:
        """Returns the numbers in another dtype."""
        return np.asarray(self).astype(dtype, copy=copy)


Tensor = np.ndarray | LazyMatrix
