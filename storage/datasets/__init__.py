"""Readers that turn dataset layouts into one validated manifest.

listing     what every reader produces
mvtec, visa, folder, table    one reader per layout
layouts     detection, and the reader for each name
checks      what can be wrong with files, listings and records
inspection  the report, and the manifest when it has no errors
images      strict decoding
"""

from cascade.storage.datasets.images import (
    MAX_PIXELS,
    ImageError,
    image_size,
    mask_in_frame,
    read_image,
    read_mask,
)
from cascade.storage.datasets.inspection import Report, inspect_dataset, load_manifest
from cascade.storage.datasets.layouts import READERS, detect_layout
from cascade.storage.datasets.listing import Problem
from cascade.storage.datasets.manifest import ImageRecord, Manifest, Split

__all__ = [
    "MAX_PIXELS",
    "READERS",
    "ImageError",
    "ImageRecord",
    "Manifest",
    "Problem",
    "Report",
    "Split",
    "detect_layout",
    "image_size",
    "inspect_dataset",
    "load_manifest",
    "mask_in_frame",
    "read_image",
    "read_mask",
]
