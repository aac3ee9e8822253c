"""Compiled programs kept between processes, so that a command's second run starts at once."""

import os
from pathlib import Path

import jax


def use_compilation_cache(enabled: bool = True, *, least_s: float = 0.2) -> None:
    """Keeps compiled programs between runs in $JAX_COMPILATION_CACHE_DIR, or else the user's cache folder (XDG).

    Without a home folder nothing is kept.

    Args:
      enabled: False keeps nothing.
      least_s: seconds of compilation from which on a program is kept.
    """
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or _users_folder()
    if not (enabled and folder):
        jax.config.update("jax_enable_compilation_cache", False)
        return
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least_s)


def _users_folder() -> str | None:
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return str(home / "rwkv7-jax" / "compiled")
