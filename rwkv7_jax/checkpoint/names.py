"""Released tensor names <-> the parameter tree, dimensions from shapes alone, and a hash of the weights.

A *flat* checkpoint maps the released names (`blocks.3.att.x_r`) to arrays. The tree keeps block 0 apart and stacks
the rest: `{"emb", "ln0", "block_0", "blocks" [L-1, ...], "ln_out", "head"}`.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import PyTree
from numpy.typing import ArrayLike, DTypeLike

from rwkv7_jax.checkpoint.files import WEIGHT_DTYPES, CheckpointError, raw_bytes, some
from rwkv7_jax.checkpoint.lazy import LazyMatrix, Tensor
from rwkv7_jax.config import RWKV7Config
from rwkv7_jax.quantisation import QuantisedWeight

TOP = ("emb.weight", "blocks.0.ln0.weight", "blocks.0.ln0.bias", "ln_out.weight", "ln_out.bias", "head.weight")
UNUSED = tuple(f"blocks.0.att.{name}" for name in ("v0", "v1", "v2"))
"""Released files carry or leave out these: layer 0 makes `v_first` and never mixes towards it."""

VECTOR = re.compile(r"blocks\.\d+\.(att\.(x_[rwkvag]|[wav]0|k_k|k_a)|ffn\.x_k)")
"""Per-channel vectors, released as [1, 1, D] and kept as [D] in the tree."""

OLDER = (
    (re.compile(r"(^|\.)time_state$"), "an RWKV state file, not a model; it is for --state, or load_state in Python"),
    (re.compile(r"\.att\.time_maa_"), "RWKV-6"),
    (re.compile(r"\.att\.gate\.weight$"), "RWKV-5"),
    (re.compile(r"\.att\.time_decay$"), "RWKV-4 or RWKV-5"),
)
NEWER = (
    (re.compile(r"\.qkv\."), "RWKV-7b (DeepEmbed and DeepEmbed attention)"),
    (re.compile(r"(^|\.)s_emb(_x)?\.|\.ffn\.s[012]$"), "RWKV-7a (DeepEmbed)"),
    (re.compile(r"(^|\.)deep_emb"), "RWKV-8 (DeepEmbed)"),
)
"""Models that have all tensors of RWKV-7 and more."""
ADAPTER = re.compile(r"[._]lora_[a-zA-Z]|\.(bone|disha|miss|pissa)$")
"""Of PEFT and RWKV-PEFT: matrices that change the weights beside them."""


class Stacked:
    """The same tensor of several layers as one array [L, ...] that is read only where it is indexed."""

    def __init__(self, layers: Sequence[Tensor]):
        self.layers = layers
        self.shape, self.dtype, self.ndim = (len(layers), *layers[0].shape), layers[0].dtype, 1 + layers[0].ndim

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int | tuple[slice, ...]) -> Tensor:
        """Copies what `index` (an integer, or a tuple of slices, one an axis) takes."""
        if not isinstance(index, tuple):
            return self.layers[index]
        first, *rest = index
        return np.stack([layer[tuple(rest)] for layer in self.layers[first]])

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        whole = np.stack(self.layers)
        return whole if dtype is None else whole.astype(dtype, copy=False)


def infer_config(flat: Mapping[str, Tensor]) -> RWKV7Config:
    """Infers every dimension of the model from tensor shapes alone.

    Args:
      flat: arrays, or anything with their shapes, by released name, in any order.

    Returns:
      The dimensions, with the default compute options.

    Raises:
      CheckpointError: names the missing or contradicting tensor, or the RWKV version that the names point to.
    """
    _reject_other_versions(flat)
    vocab_size, n_embd = _shape(flat, "emb.weight", 2)
    n_head, head_size = _shape(flat, "blocks.0.att.r_k", 2)
    if n_head * head_size != n_embd:
        raise CheckpointError(f"blocks.0.att.r_k has {n_head} heads of {head_size}, but emb.weight is {n_embd} wide")
    layers = {int(match[1]) for name in flat if (match := re.match(r"blocks\.(\d{1,6})\.", name))}
    if layers != set(range(len(layers))):
        gap = next(i for i in range(len(layers)) if i not in layers)
        raise CheckpointError(f"no tensors of layer {gap}, though there are some of layer {max(layers)}")
    mix = "blocks.1.att.v1" if len(layers) > 1 else "blocks.0.att.v1"
    return RWKV7Config(
        vocab_size=vocab_size,
        n_layer=len(layers),
        n_embd=n_embd,
        head_size=head_size,
        dim_ffn=_shape(flat, "blocks.0.ffn.key.weight", 2)[0],
        decay_lora=_shape(flat, "blocks.0.att.w1", 2)[1],
        aaa_lora=_shape(flat, "blocks.0.att.a1", 2)[1],
        mv_lora=_shape(flat, mix, 2)[1] if len(layers) > 1 or mix in flat else 32,
        gate_lora=_shape(flat, "blocks.0.att.g1", 2)[1],
    )


def block_shapes(config: RWKV7Config, layer: int) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor of one block by its name after `blocks.{layer}.`, as the tree keeps them."""
    D, F, H, N = config.n_embd, config.dim_ffn, config.n_head, config.head_size
    ranks = {"w": config.decay_lora, "a": config.aaa_lora, "v": config.mv_lora, "g": config.gate_lora}
    shapes: dict[str, tuple[int, ...]] = {f"{ln}.{part}": (D,) for ln in ("ln1", "ln2") for part in ("weight", "bias")}
    shapes |= {f"att.x_{c}": (D,) for c in "rwkvag"}
    for letter, rank in ranks.items():
        if letter == "v" and layer == 0:
            continue
        if letter != "g":
            shapes[f"att.{letter}0"] = (D,)
        shapes |= {f"att.{letter}1": (D, rank), f"att.{letter}2": (rank, D)}
    shapes |= {"att.k_k": (D,), "att.k_a": (D,), "att.r_k": (H, N)}
    shapes |= {f"att.{name}.weight": (D, D) for name in ("receptance", "key", "value", "output")}
    shapes |= {"att.ln_x.weight": (D,), "att.ln_x.bias": (D,)}
    return shapes | {"ffn.x_k": (D,), "ffn.key.weight": (F, D), "ffn.value.weight": (D, F)}


def expected_shapes(config: RWKV7Config) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor by released name, vectors as [D], without layer 0's v0, v1, v2."""
    V, D = config.vocab_size, config.n_embd
    shapes = {name: (V, D) if name in ("emb.weight", "head.weight") else (D,) for name in TOP}
    for layer in range(config.n_layer):
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in block_shapes(config, layer).items()}
    return shapes


def with_one_dtype(flat: Mapping[str, Tensor], dtype: DTypeLike) -> dict[str, Tensor]:
    """Returns tensors of which those are cast to `dtype` that have different floating dtypes in different layers."""
    stack_of = {name: re.sub(r"^blocks\.[1-9]\d*\.", "blocks.*.", name) for name in flat}
    dtypes: dict[str, set[np.dtype]] = {}
    for name, array in flat.items():
        dtypes.setdefault(stack_of[name], set()).add(array.dtype)
    mixed = {stack for stack, found in dtypes.items() if len(found) > 1 and found <= set(WEIGHT_DTYPES)}
    return {name: array.astype(dtype) if stack_of[name] in mixed else array for name, array in flat.items()}


def not_finite(params: Mapping[str, PyTree]) -> list[str]:
    """Returns the released names of tensors with NaN or infinite numbers; reads 1.2 GB/s or more on one core."""
    items = list(released_items(params))
    with ThreadPoolExecutor() as pool:
        return [
            name for (name, _), bad in zip(items, pool.map(lambda item: _has_nan(item[1]), items), strict=True) if bad
        ]


def _has_nan(array: Tensor, chunk: int = 2**20) -> bool:
    if isinstance(array, LazyMatrix):
        return not array.is_finite()
    flat = array.reshape(-1)
    return any(not np.isfinite(flat[at : at + chunk]).all() for at in range(0, flat.size, chunk))


def check(flat: Mapping[str, Tensor], config: RWKV7Config) -> None:
    """Checks that exactly the model's tensors are there, with their shapes and floating dtypes.

    Raises:
      CheckpointError: names the first that is not.
    """
    shapes = expected_shapes(config)
    if missing := set(shapes) - set(flat):
        raise CheckpointError(f"missing tensors: {some(missing)}; the file is incomplete, export it again")
    if unknown := set(flat) - set(shapes) - set(UNUSED):
        raise CheckpointError(f"tensors that RWKV-7 does not have: {some(unknown)}; remove them or check the version")
    for name, shape in shapes.items():
        if _core(flat[name].shape) != _core(shape):
            raise CheckpointError(f"{name} has shape {list(flat[name].shape)}, the other tensors imply {list(shape)}")
        if flat[name].dtype not in WEIGHT_DTYPES:
            raise CheckpointError(f"{name} is {flat[name].dtype}; only float32, bfloat16, float16 and float64 are read")


def flat_to_params(flat: Mapping[str, Tensor], *, lazy: bool = False) -> dict[str, PyTree]:
    """Returns the parameter tree of a flat checkpoint. Copies only what it stacks: emb, head and block 0 stay views.

    Args:
      flat: arrays by released name.
      lazy: copy nothing; the stacks are `Stacked`, from which each device's part can be read alone.

    Returns:
      {"emb", "ln0", "block_0", "blocks" [L-1, ...], "ln_out", "head"}, in the dtypes of `flat`.

    Raises:
      CheckpointError: a tensor is missing, unknown or of a wrong shape.
    """
    config = infer_config(flat)
    check(flat, config)
    shapes, params = expected_shapes(config), {}
    for name in TOP:
        _put(params, name.removeprefix("blocks.0."), flat[name].reshape(shapes[name]))
    for name, shape in block_shapes(config, 0).items():
        _put(params, f"block_0.{name}", flat[f"blocks.0.{name}"].reshape(shape))
    if config.n_layer > 1:
        for name, shape in block_shapes(config, 1).items():
            stack = _stack(flat, name, config.n_layer, shape)
            _put(params, f"blocks.{name}", stack if lazy else np.asarray(stack))
    return params


def params_to_flat(params: Mapping[str, PyTree]) -> dict[str, Tensor]:
    """Returns a parameter tree, stacked or not, by released names and shapes ([1, 1, D] vectors).

    The inverse of `flat_to_params`.

    Args:
      params: a parameter tree.

    Returns:
      Arrays by released name, one a layer; views where the leaves are numpy arrays.
    """
    return {
        name: array.reshape(1, 1, -1) if VECTOR.fullmatch(name) else array for name, array in released_items(params)
    }


def released_items(params: Mapping[str, PyTree]) -> Iterator[tuple[str, Tensor]]:
    """Yields (released name, array as the tree keeps it) of every tensor in a parameter tree."""
    for path, leaf in _leaves(params):
        top, _, rest = path.partition(".")
        if top == "blocks":
            leaf = leaf if isinstance(leaf, Stacked) else np.asarray(leaf)
            yield from ((f"blocks.{i + 1}.{rest}", leaf[i]) for i in range(len(leaf)))
        elif top.startswith("block_"):
            yield f"blocks.{top.removeprefix('block_')}.{rest}", _tensor(leaf)
        else:
            yield f"blocks.0.{path}" if top == "ln0" else path, _tensor(leaf)


def _tensor(leaf: ArrayLike | LazyMatrix) -> Tensor:
    return leaf if isinstance(leaf, LazyMatrix) else np.asarray(leaf)


def weights_hash(params: Mapping[str, PyTree]) -> str:
    """Computes the SHA-256 of the weights: sorted released names, dtypes, shapes and bytes.

    The same weights have the same hash from every file format, with or without layer 0's unused v0, v1, v2.

    Args:
      params: a parameter tree, its blocks stacked or not.

    Returns:
      64 hexadecimal digits.
    """
    items = sorted(released_items(params))
    with ThreadPoolExecutor() as pool:
        digests = pool.map(lambda item: hashlib.sha256(raw_bytes(np.asarray(item[1]))).hexdigest(), items)
    lines = [f"{name} {a.dtype} {list(a.shape)} {d}\n" for (name, a), d in zip(items, digests, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _stack(flat: Mapping[str, Tensor], name: str, n_layer: int, shape: tuple[int, ...]) -> Stacked:
    """Stacks layers 1.. of one tensor as [L-1, *shape], in the file's dtype."""
    layers = [flat[f"blocks.{i}.{name}"] for i in range(1, n_layer)]
    if mixed := [i for i, layer in enumerate(layers, 1) if layer.dtype != layers[0].dtype]:
        i = mixed[0]
        raise CheckpointError(
            f"blocks.{i}.{name} is {layers[i - 1].dtype}, blocks.1.{name} {layers[0].dtype}; "
            "`rwkv7 convert IN OUT --dtype float32` makes them the same"
        )
    return Stacked([layer.reshape(shape) for layer in layers])


def _reject_other_versions(flat: Mapping[str, Tensor]) -> None:
    for pattern, version in NEWER:
        if found := next((name for name in flat if pattern.search(name)), None):
            raise CheckpointError(f"this is {version}, by its tensor {found}; only RWKV-7 (x070) is supported")
    if found := next((name for name in flat if ADAPTER.search(name)), None):
        raise CheckpointError(
            f"{found} is an adapter's, which changes the model; merge it into the weights with the tool that made it "
            "(PEFT: merge_and_unload), and save the whole model"
        )
    if "blocks.0.att.x_r" in flat and "emb.weight" in flat:
        return
    for pattern, version in OLDER:
        if any(pattern.search(name) for name in flat):
            kind = version if "state" in version else f"{version}, by its tensor names; only RWKV-7 (x070) is supported"
            raise CheckpointError(f"this seems to be {kind}")
    if not any(name.startswith("blocks.") for name in flat):
        raise CheckpointError(f"no RWKV-7 tensors ({some(flat) or 'no tensors at all'}); pass an RWKV-7 checkpoint")


def _shape(flat: Mapping[str, Tensor], name: str, ndim: int) -> tuple[int, ...]:
    if name not in flat:
        raise CheckpointError(f"missing tensor {name}; the file is incomplete or not RWKV-7")
    shape = tuple(flat[name].shape)
    if len(shape) != ndim or 0 in shape:
        raise CheckpointError(f"{name} has shape {list(shape)}, expected {ndim} non-empty axes")
    return shape


def _core(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns a shape without its unit axes, which differ between formats."""
    return tuple(n for n in shape if n != 1)


def _put(tree: dict[str, PyTree], path: str, leaf: Tensor | Stacked) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = leaf


def _leaves(tree: Mapping[str, PyTree], prefix: str = "") -> Iterator[tuple[str, ArrayLike | Stacked]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        elif isinstance(value, QuantisedWeight):
            yield from _leaves(value._asdict(), f"{prefix}{name}.")
        else:
            yield prefix + name, value
