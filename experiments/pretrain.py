"""`python -m experiments.pretrain --config pretrain_student`: train RWKV-7 from scratch on the pocket world's text.

Documents are packed whole into rows and each starts from the zero state. Muon with a cosine schedule; the embedded
models were made by it. An interrupted run resumes with the same command and gives the same weights.
"""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from experiments.config import PretrainConfig, config_names, digest, help_lines, load_config, resolved
from experiments.overrides import UsageError
from experiments.run import split_config

BOOKKEEPING = ("output_dir", "log_every", "checkpoint_every", "save_dtype")
HELD_OUT_SEED, HELD_OUT_BATCHES = 10**6, 4


class TrainState(NamedTuple):
    """Weights and optimiser state."""

    params: Any
    opt_state: Any


class Program(NamedTuple):
    """The jitted functions of a run."""

    init: Any
    """key -> TrainState"""
    step: Any
    """(TrainState, batch) -> (TrainState, mean loss in nats per token); the state is donated"""
    loss: Any
    """(params, batch) -> mean loss"""


def pocket_tokenizer() -> Any:
    """The tokenizer that ships with the pocket world."""
    from experiments.build import ASSETS
    from rwkv7_jax.tokenizer import load_tokenizer

    return load_tokenizer(str(ASSETS / "tokenizer.json"))


def batches(config: PretrainConfig, seed: int) -> Any:
    """Endless Grain iterator of {tokens, tokens_segment_ids, tokens_positions}, int32 [B, T+1] each.

    Documents are packed whole by first fit; segment 0 is padding.
    """
    import grain
    import numpy as np

    from experiments.pocket import text

    tokenizer, row = pocket_tokenizer(), config.length + 1

    def encode(index: int) -> dict[str, Any]:
        document = next(text.documents(seed * 10**9 + index))
        return {"tokens": np.asarray([*tokenizer.encode(document), tokenizer.eos_id][:row], np.int32)}

    source = grain.MapDataset.range(10**9).map(encode).to_iter_dataset(grain.ReadOptions(num_threads=0))
    packed = grain.experimental.FirstFitPackIterDataset(
        source, length_struct={"tokens": row}, num_packing_bins=config.batch_size
    )
    return iter(packed.batch(config.batch_size))


def make_optimizer(config: PretrainConfig) -> Any:
    """Clipping, then Muon for the blocks' matrices and Adam for all else; linear warm-up and cosine decay.

    Source: https://kellerjordan.github.io/posts/muon.
    """
    import jax
    import optax
    from optax.contrib import MuonDimensionNumbers, muon

    def matrices(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda at, leaf: axes(jax.tree_util.keystr(at), leaf.ndim), params)

    def axes(name: str, ndim: int) -> Any:
        """Input and output axis of a block's matrix, after the axis of stacked layers; None for any other leaf."""
        rank = ndim - name.startswith("['blocks']")
        if rank != 2 or not name.startswith("['block") or "r_k" in name:
            return None
        return MuonDimensionNumbers(*((-1, -2) if "weight" in name else (-2, -1)))

    def schedule(peak: float) -> Any:
        return optax.warmup_cosine_decay_schedule(0.0, peak, config.warmup, config.steps, peak * config.final_rate)

    update = muon(
        schedule(config.muon_rate),
        weight_decay=config.weight_decay,
        adam_learning_rate=schedule(config.learning_rate),
        adam_b2=config.beta2,
        muon_weight_dimension_numbers=matrices,
    )
    return optax.chain(optax.clip_by_global_norm(1.0), update)


def make_program(config: PretrainConfig) -> Program:
    """The model of the config's dimensions as jitted init, step and loss."""
    import jax
    import jax.numpy as jnp
    import optax

    from rwkv7_jax import RWKV7, RWKV7Config, zero_state
    from state_tuning.objective import completion_loss

    ranks: dict[str, Any] = {
        "decay_lora": config.lora,
        "aaa_lora": config.lora,
        "mv_lora": config.lora,
        "gate_lora": config.gate_lora,
    }
    vocab = pocket_tokenizer().vocab_size
    model = RWKV7(RWKV7Config(vocab, config.n_layer, config.n_embd, config.head_size, **ranks))
    optimizer = make_optimizer(config)

    def init(key: Any) -> TrainState:
        params = model.init({"params": key}, jnp.zeros((1, 1), jnp.int32), zero_state(model.config, 1))["params"]
        return TrainState(params, optimizer.init(params))

    def loss(params: Any, batch: dict[str, Any]) -> Any:
        tokens, segment = batch["tokens"], batch["tokens_segment_ids"]
        same = (segment[:, 1:] == segment[:, :-1]) & (segment[:, 1:] > 0)
        starts = jnp.pad(segment[:, 1:-1] != segment[:, :-2], ((0, 0), (1, 0)), constant_values=True)
        state = zero_state(model.config, tokens.shape[0])
        logits, _ = model.apply({"params": params}, tokens[:, :-1], state, reset=starts)
        return completion_loss(logits, tokens[:, 1:], same.astype(jnp.float32))

    def step(state: TrainState, batch: dict[str, Any]) -> tuple[TrainState, Any]:
        value, grads = jax.value_and_grad(loss)(state.params, batch)
        with jax.numpy_dtype_promotion("standard"):  # optax's bias corrections mix int32 counts with float32
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return TrainState(optax.apply_updates(state.params, updates), opt_state), value

    return Program(jax.jit(init), jax.jit(step, donate_argnums=0), jax.jit(loss))


def pretrain(config: PretrainConfig) -> Iterator[dict[str, Any]]:
    """Train to the end, yielding each logged row; writes config, metrics, checkpoints and FOLDER/model.safetensors."""
    import jax

    from experiments import checkpoint, metrics

    folder, identity = config.folder, digest(resolved(config, without=BOOKKEEPING))
    program, data = make_program(config), batches(config, config.seed)
    folder.mkdir(parents=True, exist_ok=True)
    state, start = checkpoint.resume(folder, program.init(jax.random.key(config.seed)), data, identity)
    stream = batches(config, config.seed + HELD_OUT_SEED)
    held_out = [next(stream) for _ in range(HELD_OUT_BATCHES)]
    (folder / "config.json").write_text(json.dumps(resolved(config), indent=1) + "\n")
    log, rate = metrics.MetricsLog(folder / "metrics.jsonl"), metrics.Throughput()
    log.rewind("pretrain", start)
    with metrics.progress_bar(config.steps, config.name, "step", start) as bar:
        for index in range(start + 1, config.steps + 1):
            batch = next(data)
            state, value = program.step(state, batch)
            speed = rate.add(batch["tokens"].size)
            bar.update()
            if index % config.log_every == 0 or index == config.steps:
                row = {"job": "pretrain", "step": index, "loss": float(value), "timing": {"tokens_per_s": round(speed)}}
                if index % config.validate_every == 0 or index == config.steps:
                    losses = [float(program.loss(state.params, one)) for one in held_out]
                    row["validation_loss"] = sum(losses) / len(losses)
                log.append(row)
                bar.set_postfix(loss=f"{row['loss']:.3f}", tok_s=f"{speed:.0f}")
                yield row
            if index % config.checkpoint_every == 0:
                checkpoint.save(folder, index, state, {"identity": identity, "data": data.get_state()})
    export(config, state.params)


def export(config: PretrainConfig, params: Any) -> None:
    """Write the weights in released names and `save_dtype`."""
    import jax
    import ml_dtypes
    import numpy as np

    from rwkv7_jax import checkpoint as weights

    dtype = np.float32 if config.save_dtype == "float32" else ml_dtypes.bfloat16
    weights.save(config.folder / "model.safetensors", jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), params))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status: 0, 2 after a one-line error, 130 after Ctrl-C."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or "-h" in args or "--help" in args:
        names = f"configs: {', '.join(config_names(PretrainConfig))}, or a path to a .py file"
        print("\n".join([__doc__ or "", names, "", "settings, --key value:", *help_lines(PretrainConfig())]))
        return 0 if args else 2
    try:
        config = load_config(*split_config(args, PretrainConfig), PretrainConfig)
        started = time.perf_counter()
        for row in pretrain(config):
            if "validation_loss" in row:
                seconds, rate = time.perf_counter() - started, row["timing"]["tokens_per_s"]
                losses = f"loss {row['loss']:.4f}, held-out {row['validation_loss']:.4f}"
                print(f"step {row['step']}: {losses}, {rate} tokens/s, {seconds:.0f} s", flush=True)
        print(f"weights: {config.folder / 'model.safetensors'}")
    except (ValueError, OSError) as error:
        kind = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
        print(f"error: {kind}{' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command to resume from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
