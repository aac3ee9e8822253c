"""`python -m experiments.pretrain --config pretrain_student`: train RWKV-7 from scratch on the pocket world's text.

Documents are packed whole into rows; each starts from the zero state. AdamW with a cosine schedule, as the embedded models
were made. Interrupted runs resume with the same command and give the same weights.
"""

import dataclasses
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from experiments import checkpoint, metrics
from experiments.config import config_names, digest, help_lines, load_config, resolved
from experiments.overrides import UsageError, option

BOOKKEEPING = ("output_dir", "log_every", "checkpoint_every")


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Dimensions of the model, the text and the optimiser."""

    name: str = option("pretrain", "name of the model")
    seed: int = option(0, "seed of weights and text")
    output_dir: str | None = option(None, "folder of everything written; none: runs/NAME")
    n_layer: int = option(4, "layers")
    n_embd: int = option(128, "width")
    head_size: int = option(64, "size of a head")
    lora: int = option(16, "rank of the decay, in-context-learning-rate and value LoRAs")
    gate_lora: int = option(32, "rank of the gate LoRA")
    steps: int = option(3000, "optimiser steps")
    batch_size: int = option(16, "rows a step")
    length: int = option(128, "tokens a row")
    learning_rate: float = option(3e-3, "peak learning rate")
    final_rate: float = option(0.02, "last learning rate as a part of the peak")
    warmup: int = option(100, "steps of linear warm-up")
    weight_decay: float = option(0.1, "decoupled weight decay of matrices")
    beta2: float = option(0.99, "second-moment decay of AdamW")
    save_dtype: Literal["float32", "bfloat16"] = option("bfloat16", "dtype of the weights file")
    validate_every: int = option(100, "steps between validation losses")
    log_every: int = option(10, "steps between rows of metrics.jsonl")
    checkpoint_every: int = option(250, "steps between checkpoints for resuming")

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return Path(self.output_dir or f"runs/{self.name}").expanduser()


class TrainState(NamedTuple):
    """Weights and optimiser state of the run."""

    params: Any
    opt_state: Any


def batches(config: PretrainConfig, seed: int) -> Any:
    """Endless iterator (Grain) of {tokens, segment_ids} Int[B, T+1], documents packed whole; segment 0 is padding."""
    import grain
    import numpy as np

    from experiments.pocket import text
    from rwkv7_jax.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(Path(text.__file__).parents[1] / "assets/pocket/tokenizer.json"))

    def encode(index: int) -> dict[str, Any]:
        ids = [*tokenizer.encode(next(text.documents(seed * 10**9 + index))), tokenizer.eos_id]
        return {"tokens": np.asarray(ids[: config.length + 1], np.int32)}

    source = grain.MapDataset.range(10**9).map(encode).to_iter_dataset(grain.ReadOptions(num_threads=0))
    lengths = {"tokens": config.length + 1}
    packed = grain.experimental.FirstFitPackIterDataset(source, length_struct=lengths, num_packing_bins=config.batch_size)
    return iter(packed.batch(config.batch_size))


def build(config: PretrainConfig):
    """(model, optimiser, jitted init(key) -> TrainState, jitted step, jitted loss)."""
    import jax
    import jax.numpy as jnp
    import optax
    from experiments.pocket import text

    from rwkv7_jax import RWKV7, RWKV7Config, zero_state
    from rwkv7_jax.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(Path(text.__file__).parents[1] / "assets/pocket/tokenizer.json"))
    ranks = {"decay_lora": config.lora, "aaa_lora": config.lora, "mv_lora": config.lora, "gate_lora": config.gate_lora}
    model = RWKV7(RWKV7Config(tokenizer.vocab_size, config.n_layer, config.n_embd, config.head_size, **ranks))
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup, config.steps, config.learning_rate * config.final_rate
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            schedule, b2=config.beta2, weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map_with_path(lambda path, _: "weight" in str(path) and "ln" not in str(path), params),
        ),
    )  # fmt: skip

    def init(key) -> TrainState:
        params = model.init({"params": key}, jnp.zeros((1, 1), jnp.int32), zero_state(model.config, 1))["params"]
        return TrainState(params, optimizer.init(params))

    def loss(params, tokens, segment_ids):
        same = (segment_ids[:, 1:] == segment_ids[:, :-1]) & (segment_ids[:, 1:] > 0)
        starts = jnp.pad(segment_ids[:, 1:-1] != segment_ids[:, :-2], ((0, 0), (1, 0)), constant_values=True)
        logits, _ = model.apply(
            {"params": params}, tokens[:, :-1], zero_state(model.config, tokens.shape[0]), reset=starts
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return jnp.sum(losses * same) / jnp.sum(same)

    def step(state: TrainState, tokens, segment_ids):
        value, grads = jax.value_and_grad(loss)(state.params, tokens, segment_ids)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return TrainState(optax.apply_updates(state.params, updates), opt_state), value

    return model, jax.jit(init), jax.jit(step, donate_argnums=0), jax.jit(loss)


def pretrain(config: PretrainConfig) -> Iterator[dict[str, Any]]:
    """Train to the end, yielding a row of metrics at every log step; writes checkpoints, metrics and the weights."""
    import jax

    folder, identity = config.folder, digest(resolved(config, without=BOOKKEEPING))
    folder.mkdir(parents=True, exist_ok=True)
    log = metrics.MetricsLog(folder / "metrics.jsonl")
    _, init, step, loss = build(config)
    state, data, start = init(jax.random.key(config.seed)), batches(config, config.seed), 0
    held_out = [next(stream) for stream in [batches(config, config.seed + 10**6)] for _ in range(4)]
    found = checkpoint.restore(folder, state, identity)
    if found is not None and found.tree is not None:
        state, start = found.tree, found.step
        data.set_state(found.meta["data"])
    log.rewind("pretrain", start)
    (folder / "config.json").write_text(json.dumps(resolved(config), indent=1) + "\n")
    rate = metrics.Throughput()
    bar = metrics.progress_bar(config.steps, config.name, "step", start)
    for index in range(start + 1, config.steps + 1):
        batch = next(data)
        state, value = step(state, batch["tokens"], batch["tokens_segment_ids"])
        speed = rate.add(batch["tokens"].size)
        bar.update(1)
        if index % config.log_every == 0 or index == config.steps:
            row = {"job": "pretrain", "step": index, "loss": float(value), "timing": {"tokens_per_s": round(speed)}}
            if index % config.validate_every == 0 or index == config.steps:
                row["validation_loss"] = sum(float(loss(state.params, b["tokens"], b["tokens_segment_ids"])) for b in held_out) / 4
            log.append(row)
            bar.set_postfix(loss=f"{row['loss']:.3f}", tok_s=f"{speed:.0f}")
            yield row
        if index % config.checkpoint_every == 0:
            checkpoint.save(folder, index, state, {"identity": identity, "data": data.get_state()})
    bar.close()
    export(config, state.params)


def export(config: PretrainConfig, params: Any) -> None:
    """Write the weights in released names as FOLDER/model.safetensors."""
    import jax
    import ml_dtypes
    import numpy as np

    from rwkv7_jax import checkpoint as weights

    dtype = np.float32 if config.save_dtype == "float32" else ml_dtypes.bfloat16
    weights.save(config.folder / "model.safetensors", jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), params))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        if "--config" not in args[:-1]:
            raise UsageError("say which with --config NAME (pretrain_student, pretrain_teacher, or a path)")
        at = args.index("--config")
        config = load_config(args[at + 1], args[:at] + args[at + 2 :], PretrainConfig)
        started = time.perf_counter()
        for row in pretrain(config):
            if "validation_loss" in row:
                print(f"step {row['step']}: loss {row['loss']:.4f}, validation {row['validation_loss']:.4f}, "
                      f"{row['timing']['tokens_per_s']} tokens/s, {time.perf_counter() - started:.0f} s", flush=True)  # fmt: skip
        print(f"weights: {config.folder / 'model.safetensors'}")
        return 0
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command to resume", file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    # Config files import this module by its name, and their PretrainConfig must be the one that `main` checks against.
    from experiments import pretrain as this

    sys.exit(this.main())
