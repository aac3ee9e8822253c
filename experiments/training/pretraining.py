"""`python -m experiments.training.pretraining --config pretrain_student`: train RWKV-7 from scratch.

Documents are packed whole into rows and each starts from the zero state. Muon with a cosine schedule; the embedded
models were made by it. An interrupted run resumes with the same command and gives the same weights.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Generator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.config.loop import LoopConfig
from experiments.config.overrides import UsageError
from experiments.config.schema import PretrainConfig, config_names, digest, help_lines, load_config, resolved
from experiments.data.packing import Batches, pocket_tokenizer
from experiments.run import split_config
from experiments.training import distributed
from experiments.training.preemption import Interrupt, Interrupted

if TYPE_CHECKING:
    from jax.sharding import Mesh

BOOKKEEPING = ("output_dir", "save_dtype", "mesh", *(field.name for field in dataclasses.fields(LoopConfig)))
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
    """(TrainState, batch) -> (TrainState, metrics); the state is donated; a non-finite update leaves it as it was.
    metrics: loss (mean, nats per token), applied, state_finite [L,3], grad_finite [L]"""
    loss: Any
    """(params, batch) -> mean loss"""


def make_optimizer(config: PretrainConfig) -> Any:
    """Clipping, then Muon for the blocks' matrices and Adam for all else, or Adam alone; linear warm-up, cosine decay.

    Muon multiplies whole matrices, so under fsdp they are gathered for it; Adam's update sends nothing.

    Source: https://kellerjordan.github.io/posts/muon.
    """
    import jax
    import optax
    from optax.contrib import MuonDimensionNumbers, muon

    def mapped(params: Any, choose: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda at, leaf: choose(jax.tree_util.keystr(at), leaf.ndim), params)

    def axes(name: str, ndim: int) -> Any:
        """Input and output axis of a block's matrix, after the axis of stacked layers; None for any other leaf."""
        rank = ndim - name.startswith("['blocks']")
        if rank != 2 or not name.startswith("['block") or "r_k" in name:
            return None
        return MuonDimensionNumbers(*((-1, -2) if "weight" in name else (-2, -1)))

    def schedule(peak: float) -> Any:
        end = max(config.steps, config.warmup + 1)  # a run that ends in the warm-up has no decay, as in tuning
        return optax.warmup_cosine_decay_schedule(0.0, peak, config.warmup, end, peak * config.final_rate)

    if config.optimizer == "adam":
        update = optax.adamw(
            schedule(config.learning_rate),
            b2=config.beta2,
            weight_decay=config.weight_decay,
            mask=lambda params: mapped(params, lambda name, ndim: axes(name, ndim) is not None),
        )
        return optax.chain(optax.clip_by_global_norm(1.0), update)
    update = muon(
        schedule(config.muon_rate),
        weight_decay=config.weight_decay,
        adam_learning_rate=schedule(config.learning_rate),
        adam_b2=config.beta2,
        muon_weight_dimension_numbers=partial(mapped, choose=axes),
    )
    return optax.chain(optax.clip_by_global_norm(1.0), update)


def make_model(config: PretrainConfig) -> Any:
    """The model of the config's dimensions."""
    from rwkv7_jax import RWKV7, RWKV7Config

    ranks: dict[str, Any] = {
        "decay_lora": config.lora,
        "aaa_lora": config.lora,
        "mv_lora": config.lora,
        "gate_lora": config.gate_lora,
    }
    compute: dict[str, Any] = {"dtype": config.dtype, "remat": config.remat}
    vocab = pocket_tokenizer().vocab_size
    return RWKV7(RWKV7Config(vocab, config.n_layer, config.n_embd, config.head_size, **ranks, **compute))


def make_program(config: PretrainConfig, dimensions: Any = None) -> Program:
    """A model as jitted init, step and loss; of the config's dimensions, or of an RWKV7Config."""
    import jax
    import jax.numpy as jnp
    import optax

    from rwkv7_jax import RWKV7, zero_state
    from rwkv7_jax.model import init_params
    from rwkv7_jax.sharding import gathered, pin, whole
    from state_tuning.core import non_finite, objective
    from state_tuning.core.accumulate import accumulated

    model = RWKV7(dimensions) if dimensions else make_model(config)
    optimizer = make_optimizer(config)
    apply: Any = model.apply

    def init(key: Any) -> TrainState:
        params = init_params(model, key)
        return pin(TrainState(params, optimizer.init(params)))

    def sums(params: Any, batch: dict[str, Any]) -> tuple[Any, tuple[Any, Any]]:
        tokens, segment = batch["tokens"], batch["tokens_segment_ids"]
        same = (segment[:, 1:] == segment[:, :-1]) & (segment[:, 1:] > 0)
        starts = jnp.pad(segment[:, 1:-1] != segment[:, :-2], ((0, 0), (1, 0)), constant_values=True)
        state, variables = zero_state(model.config, tokens.shape[0]), {"params": params}
        hidden, last = apply(variables, tokens[:, :-1], state, reset=starts, method="hidden")
        wanted = (tokens[:, 1:], same.astype(jnp.float32))
        if config.loss_chunk:
            head = partial(apply, {"params": params | gathered({"head": params["head"]})}, method="logits")
            nll, count = objective.chunked_sums(hidden, head, *wanted, chunk=config.loss_chunk)
        else:
            nll, count = objective.completion_sums(apply(variables, hidden, method="logits"), *wanted)
        bad = (~non_finite.state_flags(jax.lax.stop_gradient(last))).astype(jnp.int32)
        return nll.sum(), (count.sum(), bad)

    def loss(params: Any, batch: dict[str, Any]) -> Any:
        total, (count, _) = sums(params, batch)
        return objective.mean(total, count)

    def step(state: TrainState, batch: dict[str, Any]) -> tuple[TrainState, dict[str, Any]]:
        data = jax.tree.map(jnp.asarray, batch)
        (total, (count, bad)), grads = accumulated(sums, state.params, data, config.accumulate)
        grads = jax.tree.map(lambda leaf: objective.mean(leaf, count), grads)
        with jax.numpy_dtype_promotion("standard"):  # optax's bias corrections mix int32 counts with float32
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        new = TrainState(optax.apply_updates(state.params, updates), opt_state)
        value = objective.mean(total, count)
        ok = non_finite.all_finite((value, grads, new))
        metrics = {
            "loss": value,
            "applied": ok,
            "state_finite": bad == 0,
            "grad_finite": non_finite.weight_flags(grads),
        }
        return pin(non_finite.select(ok, new, state)), whole(metrics)

    return Program(jax.jit(init), jax.jit(step, donate_argnums=0), jax.jit(loss))


def pretrain(
    config: PretrainConfig, interrupt: Interrupt | None = None, mesh: "Mesh | None" = None
) -> Generator[dict[str, Any], None, None]:
    """Train to the end, yielding each logged row; writes config, metrics, checkpoints and FOLDER/model.safetensors.

    mesh: the one that is set, if any (see `distributed.session`).
    """
    import jax

    from experiments.training import loop, metrics_log
    from rwkv7_jax import flops
    from rwkv7_jax.compile_cache import use_compilation_cache

    use_compilation_cache(config.compilation_cache)
    folder, program = config.folder, make_program(config)
    spread = distributed.Spread(mesh, config.batch_size)
    stream = Batches(config, config.seed + HELD_OUT_SEED, spread.rows)
    held_out = [spread.put(next(stream)) for _ in range(HELD_OUT_BATCHES)]
    folder.mkdir(parents=True, exist_ok=True)

    def validate(state: TrainState) -> dict[str, float]:
        losses = [float(program.loss(state.params, one)) for one in held_out]
        return {"validation_loss": sum(losses) / len(losses)}

    task = loop.Task(
        "pretrain",
        program.step,
        Batches(config, config.seed, spread.rows),
        config.steps,
        digest(resolved(config, without=BOOKKEEPING)),
        tokens=lambda batch: config.batch_size * (config.length + 1),
        put=spread.put,
        flops=flops.training(make_model(config).config),
        evaluate=validate,
        evaluate_every=config.validate_every,
        title=config.name,
    )
    log = metrics_log.MetricsLog(folder / "metrics.jsonl")
    place = loop.Place(folder, folder, log, interrupt or Interrupt())
    rows = loop.train(task, program.init(jax.random.key(config.seed)), config, place)
    if distributed.is_lead():
        (folder / "config.json").write_text(json.dumps(resolved(config), indent=1) + "\n")
    state = yield from rows
    export(config, state.params)


def export(config: PretrainConfig, params: Any) -> None:
    """Write the weights in released names and `save_dtype`; all processes have to call it together."""
    import jax
    import ml_dtypes
    import numpy as np

    from rwkv7_jax import checkpoint as weights
    from rwkv7_jax.sharding import host

    dtype = np.float32 if config.save_dtype == "float32" else ml_dtypes.bfloat16
    whole = jax.tree.map(lambda leaf: leaf.astype(dtype), host(params))
    if distributed.is_lead():
        weights.save(config.folder / "model.safetensors", whole)


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
        with distributed.session(config.mesh) as mesh, Interrupt() as interrupt:
            for row in pretrain(config, interrupt, mesh):
                if "validation_loss" in row:
                    seconds, rate = time.perf_counter() - started, row["timing"]["tokens_per_s"]
                    losses = f"loss {row['loss']:.4f}, held-out {row['validation_loss']:.4f}"
                    print(f"step {row['step']}: {losses}, {rate} tokens/s, {seconds:.0f} s", flush=True)
        print(f"weights: {config.folder / 'model.safetensors'}")
    except (ValueError, OSError) as error:
        kind = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
        print(f"error: {kind}{' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Interrupted as place:
        print(f"interrupted at {place}; run the same command to resume", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("interrupted; run the same command to resume from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
