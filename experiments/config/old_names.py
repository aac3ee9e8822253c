"""Settings that had another name, each with those that say it now; the first that a command knows is named."""

from collections.abc import Container

OLD: dict[str, tuple[str, ...]] = {
    "checkpoint": ("model.checkpoint",),
    "tokenizer": ("model.tokenizer",),
    "dtype": ("model.dtype",),
    "wkv": ("model.wkv",),
    "tasks": ("data.tasks",),
    "task": ("data.tasks",),
    "data_dir": ("data.dir",),
    "data": ("data.file",),
    "text": ("data.train",),
    "out": ("output",),
    "output_dir": ("output",),
    "folder": ("output",),
    "state": ("states",),
    "source_layout": ("layout",),
    "match": ("data.match",),
    "num_fewshot": ("shots",),
    "max_records": ("limit", "evaluate.max_records"),
    "max_new_tokens": ("evaluate.max_new_tokens", "adapt.max_new_tokens"),
    "include_path": ("lm_eval.include_path",),
    "apply_chat_template": ("lm_eval.apply_chat_template",),
    "no_cache": ("system.compilation_cache false", "compilation_cache false"),
    "rate": ("tune.learning_rate", "adapt.rate"),
    "rates": ("tune.learning_rate",),
    "steps": ("tune.steps", "adapt.steps"),
    "teacher": ("teacher.checkpoint",),
    **{f"teacher_{name}": (f"teacher.{name}",) for name in ("tokenizer", "model", "api")},
    **{name: (f"teacher.{name}",) for name in ("replay", "offline", "timeout", "retries", "workers")},
    **{
        name: (f"adapt.{name}",)
        for name in ("reward", "samples", "kl", "norm_cap", "clip_norm", "temperature", "chain_steps")
    },
}


def renamed(key: str, known: Container[str]) -> str:
    """What `key` is called now, among the known settings; "" if it never was one of them."""
    return next((new for new in OLD.get(key, ()) if new.partition(" ")[0] in known), "")
