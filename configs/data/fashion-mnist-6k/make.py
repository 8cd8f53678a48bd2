#!/usr/bin/env python3
"""Writes train.parquet (5,000 images) and test.parquet (1,000 images): a class-balanced subset of Fashion-MNIST.

The original IDX files come from the Debian package dataset-fashion-mnist, or from
https://github.com/zalandoresearch/fashion-mnist (data/fashion). Needs numpy, pyarrow and Pillow.
"""
import argparse
import gzip
import io
import json
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

NAMES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def read_idx(path):
    raw = gzip.open(path).read()
    rank = raw[3]
    shape = np.frombuffer(raw, ">u4", rank, 4)
    return np.frombuffer(raw, "u1", offset=4 + 4 * rank).reshape(shape)


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", optimize=True)
    return out.getvalue()


def balanced(labels, per_class, rng):
    """Row numbers of `per_class` images of each class, in a seeded order."""
    rows = np.concatenate([rng.choice(np.flatnonzero(labels == c), per_class, replace=False) for c in range(10)])
    return rng.permutation(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=pathlib.Path, default=pathlib.Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent)
    parser.add_argument("--seed", type=int, default=6000)
    args = parser.parse_args()
    features = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", image_type), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    for split, prefix, per_class in [("train", "train", 500), ("test", "t10k", 100)]:
        images = read_idx(args.source / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(args.source / f"{prefix}-labels-idx1-ubyte.gz")
        rng = np.random.Generator(np.random.PCG64([args.seed, per_class]))
        rows = balanced(labels, per_class, rng)
        table = pa.table(
            [
                pa.array([{"bytes": png(images[r]), "path": f"{prefix}-{r:05}.png"} for r in rows], image_type),
                pa.array(labels[rows].astype("int64")),
            ],
            schema=schema,
        )
        target = args.out / f"{split}.parquet"
        pq.write_table(table, target, compression="zstd", row_group_size=1000, use_dictionary=["label"], write_statistics=False)
        print(target, table.num_rows, "rows", target.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
