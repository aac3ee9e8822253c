"""Runs use one of the simulated devices."""

from collections.abc import Iterator

import jax
import pytest

from experiments.training import distributed


@pytest.fixture(autouse=True, scope="module")
def one_device() -> Iterator[None]:
    """Runs use one of the simulated devices; a test module that wants them all has a fixture of this name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "devices", lambda: jax.devices()[:1])
        yield
