"""The import report: what was found in a checkpoint."""

import dataclasses

from rwkv7_jax.checkpoint.files import some
from rwkv7_jax.config import RWKV7Config


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """What was imported from a checkpoint; `str(report)` is a text of a few lines.

    Unknown or missing tensors are errors, not entries of a report.
    """

    path: str
    """The file or folder."""
    format: str
    """File format and key layout, e.g. "safetensors (fla)"."""
    config: RWKV7Config
    """Inferred from tensor shapes alone."""
    parameter_count: int
    """Numbers in the tensors that the model uses."""
    tensor_count: int
    """Tensors that the model uses."""
    unused: tuple[str, ...]
    """Tensors of the file that the model does not use (layer 0's v0, v1, v2)."""
    missing: tuple[str, ...]
    """Always empty in a returned report: a missing tensor is an error."""
    dtypes: tuple[str, ...]
    """Of the tensors that the model uses, sorted, each once."""
    weights_hash: str
    """SHA-256, the same from every file format; state files name their base model by it."""
    notes: tuple[str, ...] = ()
    """What a reader should know: numbers that are not finite, say."""

    def __str__(self) -> str:
        c = self.config
        lines = [
            f"checkpoint    {self.path}",
            f"format        {self.format}",
            f"model         RWKV-7, {c.n_layer} layers x {c.n_embd}, {c.n_head} heads of {c.head_size}, "
            f"channel mix {c.dim_ffn}, vocabulary {c.vocab_size}",
            f"LoRA ranks    w {c.decay_lora}, a {c.aaa_lora}, v {c.mv_lora}, g {c.gate_lora}",
            f"parameters    {self.parameter_count:,} in {self.tensor_count} tensors, {', '.join(self.dtypes)}",
            f"unused        {some(self.unused) + ' (known: layer 0 never reads them)' if self.unused else 'none'}",
            f"missing       {some(self.missing) or 'none'}",
            f"weights hash  {self.weights_hash}",
        ]
        return "\n".join(lines + [f"note          {note}" for note in self.notes])
