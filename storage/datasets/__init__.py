"""Readers that turn dataset layouts into one validated manifest.

files       the files of a dataset, listed once
listing     what every reader produces
mvtec, visa, real_iad, meta, beside, folder, table    one reader per layout
layouts     detection, and the reader for each name
spelling    the files that a table means
skipped     what lies there and is not read
problems    one thing to know about a dataset, and how many are shown
checks      what can be wrong with a listing, and between records
entries     what can be wrong with one image and its mask, and pixels, a look at every pixel of them
masks       which mask belongs to which image, and what it may look like
images      strict decoding
deep        pictures with more than 8 bits, and whites, their common white
inspection  the report, and the manifest when it has no errors
"""

from cascade.storage.datasets.images import (
    MAX_PIXELS,
    ImageError,
    image_size,
    mask_in_frame,
    read_image,
    read_mask,
)
from cascade.storage.datasets.inspection import Report, Rules, inspect_dataset, load_manifest
from cascade.storage.datasets.layouts import LAYOUTS, detect_layout, list_dataset
from cascade.storage.datasets.manifest import MEAN, ImageRecord, Manifest, Split
from cascade.storage.datasets.masks import Marked, vanished
from cascade.storage.datasets.pixels import Pixels
from cascade.storage.datasets.problems import SHOWN, LeftOut, Problem, summarised

__all__ = [
    "LAYOUTS",
    "MAX_PIXELS",
    "MEAN",
    "SHOWN",
    "ImageError",
    "ImageRecord",
    "LeftOut",
    "Manifest",
    "Marked",
    "Pixels",
    "Problem",
    "Report",
    "Rules",
    "Split",
    "detect_layout",
    "image_size",
    "inspect_dataset",
    "list_dataset",
    "load_manifest",
    "mask_in_frame",
    "read_image",
    "read_mask",
    "summarised",
    "vanished",
]
