"""The JSON text of every file that an experiment writes."""

from rwkv7_jax.json_text import json_text

__all__ = ["json_text"]
