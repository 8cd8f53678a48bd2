#!/usr/bin/env python3
"""Parquet files of every variety that pyarrow writes, converted by mlomae and held against what pyarrow and Pillow read.

usage: parquet_variants.py MLOMAE FOLDER

Codecs, page versions, encodings, sizes of pages and row groups, checksums, and types of the image and label columns. Every
converted file must hold the same pixels, in the same order, under the same class names. Prints how many did.
"""

import io
import itertools
import json
import pathlib
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

NUM_IMAGES = 24
NAMES = ["ant", "bee", "cat"]
CLASSES = [i % 3 for i in range(NUM_IMAGES)]
LABELS = {
    "int64": lambda: pa.array(CLASSES, pa.int64()),
    "uint8": lambda: pa.array(CLASSES, pa.uint8()),
    "float": lambda: pa.array([float(c) for c in CLASSES], pa.float32()),
    "bool": lambda: pa.array([c == 1 for c in CLASSES], pa.bool_()),
    "string": lambda: pa.array([NAMES[c] for c in CLASSES], pa.string()),
    "large-string": lambda: pa.array([NAMES[c] for c in CLASSES], pa.large_string()),
    "category": lambda: pa.array([NAMES[c] for c in CLASSES]).dictionary_encode(),
}
WRITING = {
    "plain": dict(use_dictionary=False),
    "dictionary": dict(use_dictionary=True),
    "v2": dict(data_page_version="2.0"),
    "small-pages": dict(data_page_size=64, use_dictionary=False),
    "row-groups": dict(row_group_size=5),
    "checksums": dict(write_page_checksum=True),
    "no-statistics": dict(write_statistics=False),
}
CODECS = ["none", "snappy", "gzip", "zstd", "lz4", "brotli"]


def encoded(i):
    pixels = np.random.default_rng(i).integers(0, 256, (9 + i % 3, 8, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def pixels_of(cell):
    return np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB"))


def names_of(table):
    """Class name of every row, as `datasets` would give it."""
    column = table.column("label").to_pylist()
    metadata = (table.schema.metadata or {}).get(b"huggingface")
    feature = json.loads(metadata)["info"]["features"]["label"] if metadata else {}
    names = feature.get("names") or feature.get("feature", {}).get("names")
    if names:
        return [names[value] for value in column]
    return [str(int(value)) if not isinstance(value, str) else value for value in column]


def main():
    mlomae, root = sys.argv[1], pathlib.Path(sys.argv[2])
    images = [{"bytes": encoded(i), "path": None} for i in range(NUM_IMAGES)]
    num_equal = 0
    variants = list(itertools.product(CODECS, WRITING, LABELS))
    for number, (codec, writing, label) in enumerate(variants):
        binary = pa.large_binary() if number % 5 == 4 else pa.binary()
        image = pa.array(images, pa.struct([("bytes", binary), ("path", pa.string())]))
        table = pa.table({"image": image, "label": LABELS[label]()})
        folder = root / f"{codec}-{writing}-{label}"
        folder.mkdir(parents=True)
        pq.write_table(table, folder / "train.parquet", compression=codec, **WRITING[writing])
        done = subprocess.run(
            [mlomae, "data", "convert", folder, folder / "out"], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            sys.exit(f"{folder.name}: {done.stderr}")
        found = pq.read_table(next((folder / "out").rglob("*.parquet")))
        source = pq.read_table(folder / "train.parquet")
        if names_of(found) != names_of(source):
            sys.exit(f"{folder.name}: classes {names_of(found)}, not {names_of(source)}")
        for row, (ours, theirs) in enumerate(zip(found.column(0).to_pylist(), source.column(0).to_pylist(), strict=True)):
            if not np.array_equal(pixels_of(ours), pixels_of(theirs)):
                sys.exit(f"{folder.name}: other pixels in row {row}")
        num_equal += 1
    print(f"{num_equal} of {len(variants)} Parquet files equal to pyarrow and Pillow, {NUM_IMAGES} images each")


if __name__ == "__main__":
    main()
