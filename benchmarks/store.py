"""Cached embeddings read back: our store, every byte verified, against the way micro-sam keeps them.

    python -m benchmarks.store [--images 64] [--json]

Both hold the same float16 numbers [256, 64, 64] and are read in full, from the page cache. Ours is one array of all
images, float16, not compressed; crc32c and our digest are checked. micro-sam's is a zarr group for each image with an
array [1, 256, 64, 64] in float32 and zarr's default codec, and nothing is checked.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import zarr

from benchmarks.paired import compare, publish
from cascade.storage.artefacts import ArraySpec, Artefact, Store
from cascade.storage.keys import StageKey
from cascade.tasks.execution.threads import read_ahead

SHAPE = (256, 64, 64)
BYTES = 2 * SHAPE[0] * SHAPE[1] * SHAPE[2]
"""Of one image's numbers in float16, whatever they take on disk."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    names = [f"image{number}" for number in range(arguments.images)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        artefact = write(root, names)

        def ours() -> list[np.ndarray]:
            return [item.arrays["embedding"] for _, item in read_ahead(names, artefact.read)]

        def one_by_one() -> list[np.ndarray]:
            return [artefact.read(name).arrays["embedding"] for name in names]

        def micro_sam() -> list[np.ndarray]:
            return [np.asarray(zarr.open_group(root / "peer" / name, mode="r")["features"][:])[0] for name in names]

        for own, theirs in zip(ours(), micro_sam(), strict=True):
            np.testing.assert_array_equal(own, theirs)
        comparisons = [
            compare(name, "a float32 group for each image, not verified", "image", way, micro_sam, len(names),
                    arguments.rounds)
            for name, way in (("two readers, verified", ours), ("one reader, verified", one_by_one))
        ]  # fmt: skip
        facts = {
            "images": len(names),
            "rounds": arguments.rounds,
            "gigabytes_per_second": {each.name: BYTES / each.ours_ms / 1e6 for each in comparisons},
            "megabytes_on_disk": {
                "ours": artefact.nbytes() / 1e6,
                "peer": sum(path.stat().st_size for path in (root / "peer").rglob("*") if path.is_file()) / 1e6,
            },
        }
    publish(comparisons, facts, as_json=arguments.json)
    return 0


def write(root: Path, names: Sequence[str]) -> Artefact:
    """The same embeddings in both layouts; Gaussian numbers compress like those of an encoder."""
    rng = np.random.default_rng(0)
    artefact = Store(root).artefact(StageKey("embed", 1, {}))
    with artefact.writing(names, {"embedding": ArraySpec(SHAPE, "float16")}):
        for name in names:
            embedding = rng.standard_normal(SHAPE, dtype=np.float32).astype(np.float16)
            artefact.write(name, {"embedding": embedding}, {})
            group = zarr.create_group(root / "peer" / name)
            group.create_array("features", data=embedding[None].astype(np.float32), chunks=(1, *SHAPE))
    return artefact


if __name__ == "__main__":
    sys.exit(main())
