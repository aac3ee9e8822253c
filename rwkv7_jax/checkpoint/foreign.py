"""Files and folders that are taken for checkpoints: which file of a folder is meant, and what other kinds are."""

import pathlib

from rwkv7_jax.checkpoint.files import CheckpointError

GGUF = "a GGUF file of llama.cpp; take the .pth or .safetensors that it was made from"
SIGNS = (
    (b"GGUF", GGUF),
    (b"version https://", "a pointer of Git LFS, not the file itself; `git lfs pull` brings it"),
)
"""First bytes of other files."""
FOLDERS = (
    ("adapter_config.json", "an adapter of PEFT; merge it into its model (merge_and_unload), and save the whole model"),
    ("zero_to_fp32.py", "a folder of DeepSpeed; its own zero_to_fp32.py writes the weights to one file"),
    (
        "*.distcp",
        "a folder of torch.distributed; `python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER "
        "FILE.pth` writes one file",
    ),
    ("pytorch_model.bin.index.json", "weights in several .bin files; save them as safetensors, or as one .pth"),
    ("*.gguf", GGUF),
)
"""What lies in folders of other kinds."""
SINGLE = ("*.pth", "*.pt", "*.bin")


def sign_of(head: bytes) -> str | None:
    """Returns what a file with these first 16 bytes is, and what to do; None for other kinds."""
    return next((text for sign, text in SIGNS if head.startswith(sign)), None)


def meant(path: pathlib.Path) -> pathlib.Path:
    """Returns the only .pth or .bin of a folder without safetensors, or the path as it is.

    Raises:
      CheckpointError: a folder of another kind.
    """
    if not path.is_dir() or any(path.glob("*.safetensors")) or (path / "model.safetensors.index.json").exists():
        return path
    for sign, text in FOLDERS:
        if any(path.glob(sign)):
            raise CheckpointError(f"{path}: {text}")
    found = sorted(file for pattern in SINGLE for file in path.glob(pattern) if file.is_file())
    return found[0] if len(found) == 1 else path
