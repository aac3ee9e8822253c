"""Checkpoints by address: `hf://OWNER/NAME[@REVISION][/FILE]` on the Hugging Face hub, and `https://...`.

The hub is asked through the package `huggingface_hub` (`pip install "rwkv7-jax[hub]"`), which keeps what it downloads,
goes on where a download broke off, and works offline with what it has. Other addresses need nothing more.
"""

import pathlib
import re
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from rwkv7_jax.checkpoint.download import download
from rwkv7_jax.checkpoint.files import CheckpointError, one_line

ADDRESS = re.compile(r"(hf|https)://", re.IGNORECASE)
HUB = re.compile(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+))?", re.IGNORECASE)
PAGE = re.compile(r"https://(?:huggingface\.co|hf\.co)/([^/]+/[^/]+)/(?:resolve|blob)/([^/]+)/([^?#]+)", re.IGNORECASE)
"""The address of a file on the hub as browsers have it."""
WEIGHTS = (".safetensors", ".pth")
BESIDE = (".safetensors", ".json", ".txt")
"""Files of a folder of safetensors that are needed."""
SHOWN = 6
TOLD = {
    "GatedRepoError": "has terms that you have to accept on its page; then `hf auth login`",
    "RepositoryNotFoundError": "is not there, or private; check the name, or `hf auth login`",
    "RevisionNotFoundError": "has no such revision",
    "LocalEntryNotFoundError": "cannot be reached, and is not in the cache of the hub; check the network",
    "OfflineModeIsEnabled": "is not in the cache of the hub, and HF_HUB_OFFLINE is set",
    "EntryNotFoundError": "has no such file",
    "HFValidationError": "is not a name on the hub; write hf://OWNER/NAME or hf://OWNER/NAME/FILE",
}
"""What errors of the library mean, the special ones before the general."""


class HubPlace(NamedTuple):
    """A model repository on the hub, and which file of it."""

    repository: str
    revision: str | None
    file: str | None


def is_address(name: str) -> bool:
    """Whether it is the address of a checkpoint, and not a path.

    Example:
      >>> [is_address(name) for name in ("hf://owner/name", "https://host/model.pth", "model.pth", "gs://bucket/a")]
      [True, True, False, False]
    """
    return ADDRESS.match(name) is not None


def short_name(address: str) -> str:
    """Returns the name of the file or the repository without its suffix.

    Example:
      >>> short_name("hf://owner/rwkv7-0.1b"), short_name("https://host/a/model.pth?x=1")
      ('rwkv7-0.1b', 'model')
    """
    place = hub_place(address) if ADDRESS.match(address) else None
    last = (place.file or place.repository) if place else unquote(urlsplit(address).path)
    name = last.rpartition("/")[2]
    return name if place and not place.file else pathlib.PurePosixPath(name).stem


def hub_place(address: str) -> HubPlace | None:
    """Returns the place on the hub; None for another address.

    Raises:
      CheckpointError: hf:// without an owner and a name.
    """
    if page := PAGE.match(address):
        return HubPlace(page[1], unquote(page[2]), unquote(page[3]))
    if not address.lower().startswith("hf://"):
        return None
    found = HUB.fullmatch(address.rstrip("/"))
    if found is None:
        raise CheckpointError(f"{address}: write hf://OWNER/NAME or hf://OWNER/NAME/FILE")
    return HubPlace(found[1], found[2], found[3])


def fetched(address: str) -> pathlib.Path:
    """Returns the file or folder of a checkpoint on this machine, and downloads it unless it is there.

    Args:
      address: `hf://OWNER/NAME` (a folder of safetensors, or the one .pth of a repository), `hf://OWNER/NAME/FILE`, or
        `https://...`. A revision goes behind the name: `hf://OWNER/NAME@REVISION`.

    Returns:
      Its path, in the cache of the hub or of this package.

    Raises:
      CheckpointError: one line: not found, no network, no `huggingface_hub`, several checkpoints to choose from.
    """
    place = hub_place(address)
    if place is None:
        return download(address)
    try:
        import huggingface_hub
    except ImportError:
        raise CheckpointError(f'{address}: needs huggingface_hub: pip install "rwkv7-jax[hub]"') from None
    repository, revision, file = place
    try:
        if file is not None:
            return pathlib.Path(huggingface_hub.hf_hub_download(repository, file, revision=revision))
        return _folder(address, repository, revision)
    except CheckpointError:
        raise
    except Exception as error:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        meant = next((text for name, text in TOLD.items() if name in kinds), None)
        detail = meant or f"cannot be downloaded ({one_line(str(error) or type(error).__name__, 200)})"
        raise CheckpointError(f"{address}: {detail}") from None


def _folder(address: str, repository: str, revision: str | None) -> pathlib.Path:
    """The checkpoint of a repository whose file is not named."""
    import huggingface_hub

    try:
        info = huggingface_hub.HfApi().model_info(repository, revision=revision)
    except Exception as error:
        if any(kind.__name__ in ("HfHubHTTPError", "HFValidationError") for kind in type(error).__mro__):
            raise
        # There is no network: what was downloaded before is taken.
        folder = pathlib.Path(huggingface_hub.snapshot_download(repository, revision=revision, local_files_only=True))
        chosen = _chosen(address, [path.name for path in folder.iterdir()])
        return folder if len(chosen) > 1 else folder / chosen[0]
    chosen = _chosen(address, [one.rfilename for one in info.siblings or ()])
    # By the name of the revision and not its hash: offline the hub's cache knows what is read under a name.
    paths = [pathlib.Path(huggingface_hub.hf_hub_download(repository, name, revision=revision)) for name in chosen]
    if len({path.parent for path in paths}) > 1:
        raise CheckpointError(f"{address}: was changed while it was downloaded; run the same command again")
    return paths[0] if len(paths) == 1 else paths[0].parent


def _chosen(address: str, names: list[str]) -> list[str]:
    """The files to take: those of a folder of safetensors, or the only checkpoint there is."""
    names = sorted(name for name in names if "/" not in name)
    if "config.json" in names and any(name.endswith(".safetensors") for name in names):
        return [name for name in names if name.endswith(BESIDE)]
    found = [name for name in names if name.endswith(WEIGHTS)]
    if len(found) == 1:
        return found
    if not found:
        raise CheckpointError(f"{address}: holds no .safetensors and no .pth; name a file: {address}/FILE")
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    raise CheckpointError(
        f"{address}: holds {len(found)} checkpoints; name one: {address}/FILE ({', '.join(found[:SHOWN])}{more})"
    )
