#!/usr/bin/env python3
"""Datasets with class maps, boxes, labels and values in every layout, and whether mlomae reads of them what others do.

    targets.py make FOLDER                writes the datasets to FOLDER and FOLDER/cases.json
    targets.py compare FOLDER RESULTS     holds the output of the example read_targets against the others

The measure of class maps is Pillow, of COCO's boxes pycocotools, of Pascal VOC's the XML parser of Python, of Parquet
pyarrow. Damaged datasets must be refused in one line with certain words.
"""

import contextlib
import io
import json
import math
import struct
import sys
import xml.etree.ElementTree as ElementTree
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps
from pycocotools.coco import COCO

SEED = 20261128
NO_CLASS = 65535
VOC = "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep sofa train tvmonitor"
VOC = VOC.split()


class Maker:
    """Writes datasets, and keeps what is to be read of each."""

    def __init__(self, folder):
        self.folder, self.cases = Path(folder), []
        self.rng = np.random.default_rng(SEED)

    def place(self, name):
        path = self.folder / name
        path.mkdir(parents=True)
        return path

    def case(self, path, oracle, targets, **options):
        """`oracle` is the name of a function below, or `refused: words|words`."""
        self.cases.append({"path": str(path), "oracle": oracle, "targets": targets, **options})

    def photo(self, path, size, orientation=None):
        width, height = size
        values = self.rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        exif = Image.Exif()
        if orientation:
            exif[0x112] = orientation
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path, exif=exif)

    def size(self):
        return int(self.rng.integers(5, 40)), int(self.rng.integers(5, 40))

    def indices(self, size, last, void=None):
        width, height = size
        coarse = self.rng.integers(0, last + 1, (height // 4 + 1, width // 4 + 1))
        values = np.kron(coarse, np.ones((4, 4), int))[:height, :width]
        if void is not None:
            values[self.rng.random(values.shape) < 0.1] = void
        return values


def grey(values, bits):
    """A grey PNG of 1, 2, 4, 8 or 16 bits, by hand: Pillow writes few of them."""
    height, width = values.shape
    rows = []
    for row in values:
        if bits == 16:
            packed = row.astype(">u2").tobytes()
        else:
            per_byte = 8 // bits
            padded = np.zeros(-(-width // per_byte) * per_byte, int)
            padded[:width] = row
            shifts = np.arange(8 - bits, -1, -bits)
            packed = (padded.reshape(-1, per_byte) << shifts).sum(1).astype(np.uint8).tobytes()
        rows.append(b"\0" + packed)
    return png(width, height, bits, 0, 0, zlib.compress(b"".join(rows)))


def interlaced(values):
    """A grey PNG of 4 bits in Adam7's seven passes."""
    height, width = values.shape
    data = b""
    for x, y, dx, dy in [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]:
        part = values[y::dy, x::dx]
        if part.size == 0:
            continue
        for row in part:
            row = list(row) + [0] * (len(row) % 2)
            data += b"\0" + bytes(int(a) << 4 | int(b) for a, b in zip(row[::2], row[1::2]))
    return png(width, height, 4, 0, 1, zlib.compress(data))


def png(width, height, bits, colour, interlace, data):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def save_palette(values, path):
    image = Image.fromarray(values.astype(np.uint8), "P")
    image.putpalette(list(np.random.default_rng(1).integers(0, 256, 768)))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, transparency=0)


def encoded(image):
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


# Segmentation folders


def mask_folders(maker):
    ade = maker.place("ade20k")
    for split, num in [("training", 9), ("validation", 4)]:
        for number in range(num):
            size, name = maker.size(), f"ADE_{split}_{number:08}"
            maker.photo(ade / "images" / split / f"{name}.jpg", size, orientation=[None, 1, 6, 3, 8, 5, 2, 7, 4][number])
            values = maker.indices(size, 150)
            values.flat[0] = 150
            save_palette(values, ade / "annotations" / split / f"{name}.png")
    names = [f"thing {number}, stuff" for number in range(1, 151)]
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName"] + [f"{n + 1}\t0.1\t5\t4\t0\t{name}" for n, name in enumerate(names)]
    (ade / "objectInfo150.txt").write_text("\n".join(lines) + "\n")
    for split in ["train", "test", "validation"]:
        maker.case(ade, "folder_maps", ["map"], split=split, of="annotations", zero_is_none=True, names=names)
    maker.case(ade, "folder_maps", ["map"], of="annotations", zero_is_none=True, names=names, exif_orientation=False)
    maker.case(ade, "refused: 0 to 149, or 255 for none, not 150", ["map"], reduce_zero_label=False)
    maker.case(ade, "refused: has no boxes of its images, it has: map", ["boxes"])
    maker.case(ade, "refused: has no class of its images, it has: map", ["class"])

    plain = maker.place("plain")
    for number, bits in enumerate([1, 2, 4, 8, 16, "P", "adam7"]):
        size = maker.size()
        maker.photo(plain / "images" / "train" / f"{number}.png", size)
        path = plain / "masks" / "train" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        last = {1: 1, 2: 3, 4: 6, 8: 6, 16: 6, "P": 6, "adam7": 6}[bits]
        values = maker.indices(size, last, {8: 255, "P": 255, 16: 65535}.get(bits))
        values.flat[0] = last
        if bits == "P":
            save_palette(values, path)
        else:
            path.write_bytes(interlaced(values) if bits == "adam7" else grey(values, bits))
    maker.case(plain, "folder_maps", ["map"], of="masks", names=[str(number) for number in range(7)])
    maker.case(plain, "refused: no validation split|no test split", ["map"], split="test")
    listed = maker.place("listed")
    (listed / "classes.txt").write_text("sky\ngrass\n")
    maker.photo(listed / "images" / "train" / "a.jpg", (7, 5))
    maker.photo(listed / "images" / "train" / "b.jpg", (7, 5))
    save_palette(maker.indices((7, 5), 1) | 1, listed / "masks" / "train" / "a.png")
    save_palette(np.full((5, 7), 2), listed / "masks" / "train" / "b.png")
    maker.case(listed, "refused: masks/train/b.png: sample 1: its class indices must be 0 to 1, or 255 for none, not 2", ["map"])
    maker.case(listed, "folder_maps", ["map"], of="masks", zero_is_none=True, names=["sky", "grass"], reduce_zero_label=True)


def damaged_masks(maker):
    def damaged(name, write, words, size=(9, 6)):
        place = maker.place(f"damaged-{name}")
        for number in range(2):
            maker.photo(place / "images" / "train" / f"{number}.jpg", size)
            save_palette(maker.indices(size, 3) | 1, place / "masks" / "train" / f"{number}.png")
        write(place / "masks" / "train" / "1.png", place)
        maker.case(place, f"refused: {words}", ["map"])

    values = np.ones((6, 9), np.uint8)
    whole = grey(values, 8)
    damaged("cut", lambda path, _: path.write_bytes(whole[:-20]), "1.png: sample 1: truncated png image")
    damaged("size", lambda path, _: path.write_bytes(grey(values[:5], 8)), "1.png: sample 1: is of 9x5 pixels, its image of 9x6")
    damaged("turned", lambda path, _: path.write_bytes(grey(values.T, 8)), "1.png: sample 1: is of 6x9 pixels, its image of 9x6")
    rgb = encoded(Image.fromarray(np.zeros((6, 9, 3), np.uint8)))
    damaged("rgb", lambda path, _: path.write_bytes(rgb), "grey or palette values, not RGB colours")
    alpha = encoded(Image.fromarray(np.zeros((6, 9, 2), np.uint8), "LA"))
    damaged("alpha", lambda path, _: path.write_bytes(alpha), "not grey with alpha")
    jpeg = io.BytesIO()
    Image.fromarray(values).save(jpeg, "JPEG")
    damaged("jpeg", lambda path, _: path.write_bytes(jpeg.getvalue()), "unsupported jpeg image: class indices must be stored without loss")
    damaged("absent", lambda path, _: path.unlink(), "has no map 1.png in masks/train, as 1 of 2 images")
    flipped = bytearray(whole)
    flipped[-20] ^= 255
    damaged("checksum", lambda path, _: path.write_bytes(bytes(flipped)), "1.png: sample 1: corrupt png image")
    empty = maker.place("binary")
    maker.photo(empty / "images" / "train" / "0.jpg", (8, 8))
    (empty / "masks" / "train").mkdir(parents=True)
    (empty / "masks" / "train" / "0.png").write_bytes(grey(255 * maker.indices((8, 8), 1), 8))
    maker.case(empty, "refused: no class index above 0 but 255", ["map"])


# Pascal VOC


def voc(maker):
    root = maker.place("voc/VOCdevkit/VOC2012")
    names = {"train": [], "val": []}
    for number in range(12):
        size, name, split = maker.size(), f"2007_{number:06}", "val" if number % 3 == 2 else "train"
        names[split].append(name)
        maker.photo(root / "JPEGImages" / f"{name}.jpg", size, orientation=[None, 6, 3, 8][number % 4])
        write_voc(maker, root, name, size, maker.rng.integers(0, 5), VOC)
        save_palette(maker.indices(size, 20, 255), root / "SegmentationClass" / f"{name}.png")
    for task, suffix in [("Main", ""), ("Segmentation", "")]:
        (root / "ImageSets" / task).mkdir(parents=True)
        for split, all_names in names.items():
            kept = all_names if task == "Main" else all_names[1:]
            (root / "ImageSets" / task / f"{split}.txt").write_text("".join(f"{name}\n" for name in kept))
    (root / "ImageSets" / "Main" / "cat_train.txt").write_text("2007_000000 -1\n")
    top = maker.folder / "voc"
    for split in ["train", "test"]:
        maker.case(top, "voc", ["boxes", "labels"], split=split, names=VOC)
        maker.case(top, "voc", ["map"], split=split, names=["background", *VOC])
        maker.case(top, "voc", ["boxes", "map"], split=split)
        maker.case(top, "voc", ["boxes"], split=split, exif_orientation=False)
    maker.case(top, "refused: has no class of its images, it has: labels, map, boxes", ["class"])

    own = maker.place("voc-own")
    for number in range(4):
        size, name = maker.size(), f"{number}"
        maker.photo(own / "JPEGImages" / f"{name}.png", size)
        write_voc(maker, own, name, size, 2 + number, ["screw", "nut", "bolt"])
    maker.case(own, "voc", ["boxes", "labels"], names=["bolt", "nut", "screw"])
    maker.case(own, "refused: all annotated images are the train split", ["boxes"], split="test")
    maker.case(own, "refused: has no map of its images, it has: labels, boxes", ["map"])

    def damaged(name, change, words):
        place = maker.place(f"voc-{name}")
        maker.photo(place / "JPEGImages" / "0.jpg", (20, 10))
        write_voc(maker, place, "0", (20, 10), 2, ["cat"])
        change(place / "Annotations" / "0.xml", place)
        maker.case(place, f"refused: {words}", ["boxes"])

    def edit(old, new):
        return lambda path, _: path.write_text(path.read_text().replace(old, new))

    box = "<xmin>3</xmin><ymin>1</ymin><xmax>40</xmax><ymax>5</ymax>"
    outside = f"<object><name>cat</name><bndbox>{box}</bndbox></object></annotation>"
    damaged("cut", lambda path, _: path.write_bytes(path.read_bytes()[:-30]), "0.xml: is no XML")
    damaged("outside", edit("</annotation>", outside), "0.xml: a box from 2, 0 to 40, 5 leaves its image of 20x10 pixels")
    damaged("text", edit("<xmin>", "<xmin>x"), "0.xml: <xmin> must be a number, not")
    damaged("nan", edit("<xmin>", "<xmin>nan</xmin><xmin>"), "0.xml: <xmin> must be a number, not")
    damaged("no-name", edit("<name>cat</name>", ""), "0.xml: an <object> has no <name>")
    damaged("no-box", edit("bndbox>", "box>"), "0.xml: object cat has no <bndbox>")
    damaged("other", edit("annotation>", "annotations>"), "0.xml: must hold an <annotation>, not <annotations>")
    damaged("class", lambda _, place: (place / "classes.txt").write_text("dog\n"), "0.xml: an object is of a class that classes.txt does not list, cat")
    damaged("size", edit("<width>20</width>", "<width>60</width>"), "0.jpg: sample 0: is of 20x10 pixels, its boxes are those of an image of 60x10")
    damaged("no-image", lambda _, place: (place / "JPEGImages" / "0.jpg").rename(place / "JPEGImages" / "1.jpg"), "names an image without a file JPEGImages/0.jpg")
    bomb = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]><annotation><size>&b;</size></annotation>'
    damaged("bomb", lambda path, _: path.write_text(bomb), "0.xml: is no XML")


def write_voc(maker, root, name, size, num, classes):
    width, height = size
    objects = ""
    for _ in range(num):
        left, right = sorted(maker.rng.integers(1, width + 1, 2))
        top, bottom = sorted(maker.rng.integers(1, height + 1, 2))
        difficult = maker.rng.choice(["", "<difficult>0</difficult>", "<difficult>1</difficult>"])
        part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
        objects += f"<object><name>{maker.rng.choice(classes)}</name>{difficult}<bndbox><xmin>{left}</xmin><ymin>{top}</ymin>"
        objects += f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox>{part}</object>\n"
    text = f"<annotation><folder>VOC</folder><filename>{name}.jpg</filename><size><width>{width}</width><height>{height}</height>"
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    (root / "Annotations" / f"{name}.xml").write_text(f"{text}<depth>3</depth></size>\n{objects}</annotation>\n")


# COCO


def coco(maker):
    root = maker.place("coco")
    (root / "annotations").mkdir()
    for split, num in [("train2017", 9), ("val2017", 4)]:
        images, objects = [], []
        for number in range(num):
            width, height = maker.size()
            name = f"{number:012}.jpg"
            maker.photo(root / split / name, (width, height), orientation=[None, 6, 3, 8, 5][number % 5])
            images.append({"id": 1000 - 7 * number, "file_name": name, "width": width, "height": height, "license": 1})
            for at in range(int(maker.rng.integers(0, 4)) if number else 0):
                left, top = maker.rng.uniform(0, width - 1), maker.rng.uniform(0, height - 1)
                w, h = maker.rng.uniform(0.5, width - left), maker.rng.uniform(0.5, height - top)
                crowd = int(maker.rng.random() < 0.3)
                outline = {"counts": [1, 2, 3], "size": [height, width]} if crowd else [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]
                box = [round(value, 2) for value in (left, top, w, h)]
                objects.append(
                    {"segmentation": outline, "area": round(w * h / 2, 3), "iscrowd": crowd, "image_id": images[-1]["id"]}
                    | {"bbox": box, "category_id": int(maker.rng.choice([90, 3, 17])), "id": 100 * number + at}
                )
        categories = [{"supercategory": "x", "id": id, "name": name} for id, name in [(17, "cat"), (3, "car"), (90, "toothbrush")]]
        whole = {"info": {"year": 2017}, "licenses": [], "images": images, "annotations": objects, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(whole))
        (root / "annotations" / f"captions_{split}.json").write_text("{}")
    for split in ["train", "test"]:
        names = ["car", "cat", "toothbrush"]
        maker.case(root, "coco", ["boxes"], split=split, names=names)
        maker.case(root, "coco", ["labels", "boxes"], split=split, exif_orientation=False)
    maker.case(root, "refused: has no map of its images, it has: labels, boxes", ["map"])

    roboflow = maker.place("roboflow")
    maker.photo(roboflow / "train" / "a.jpg", (30, 20))
    whole = json.dumps({
        "categories": [{"id": 0, "name": "all"}, {"id": 1, "name": "crack"}],
        "annotations": [{"id": 1, "image_id": 5, "category_id": 1, "bbox": [1, 2, 3, 4]}, {"id": 2, "image_id": 5, "category_id": 0, "bbox": [1, 2, 0, 4]}],
        "images": [{"id": 5, "file_name": "a.jpg"}],
    })
    (roboflow / "train" / "_annotations.coco.json").write_text(whole)
    maker.case(roboflow, "coco", ["boxes"], names=["all", "crack"], without_area=1)

    def damaged(name, change, words):
        place = maker.place(f"coco-{name}")
        maker.photo(place / "train" / "a.jpg", (30, 20))
        root = json.loads(whole)
        text = change(root)
        (place / "annotations").mkdir()
        (place / "annotations" / "instances_train.json").write_text(text if isinstance(text, str) else json.dumps(root))
        maker.case(place, f"refused: instances_train.json: {words}", ["boxes"])

    def with_size(root):
        root["images"][0] |= {"width": 30, "height": 20}
        root["annotations"][0]["bbox"] = [20, 2, 20, 4]

    damaged("cut", lambda _: whole[:-60], "is no COCO file of objects: EOF while parsing")
    damaged("list", lambda _: "[]", "is no COCO file of objects: invalid type: sequence")
    damaged("behind", lambda _: whole + "{}", "is no COCO file of objects: trailing characters")
    damaged("outside", with_size, "annotation 1: a box from 20, 2 to 40, 6 leaves its image of 30x20 pixels")
    damaged("class", lambda root: root["annotations"][0].update(category_id=7), "annotation 1: no category has the id 7")
    damaged("image", lambda root: root["annotations"][0].update(image_id=7), "annotation 1: no image has the id 7")
    damaged("twice", lambda root: root["images"].append(root["images"][0]), "two images have the id 5")
    damaged("category", lambda root: root["categories"].append(root["categories"][0]), "two categories have the id 0")
    damaged("box", lambda root: root["annotations"][0].update(bbox=[1, 2, 3]), "is no COCO file of objects: invalid length 3")
    damaged("absent", lambda root: root["images"][0].update(file_name="b.jpg"), "image 5 is absent in train, b.jpg")
    damaged("escape", lambda root: root["images"][0].update(file_name="../a.jpg"), "image 5 must be a path below the folder, not ../a.jpg")
    damaged("without", lambda root: root.pop("images") and None, "is no COCO file of objects: missing field `images`")
    damaged("crowd", lambda root: root["annotations"][0].update(iscrowd=2), "is no COCO file of objects: a flag must be 0 or 1, not 2")


# Parquet


def parquet(maker):
    def dataset(name, num, columns, features=None, size=None):
        """`columns(number, size)` gives the values of a row beside its image."""
        place, rows = maker.place(f"parquet-{name}"), []
        for number in range(num):
            own = size or maker.size()
            values = maker.rng.integers(0, 256, (own[1], own[0], 3), dtype=np.uint8)
            rows.append({"image": {"bytes": encoded(Image.fromarray(values)), "path": None}, **columns(number, own)})
        table = pa.Table.from_pylist(rows)
        for column, kind in (features or {}).pop("_types", {}).items():
            at = table.schema.get_field_index(column)
            table = table.set_column(at, column, table.column(column).cast(kind))
        if features:
            metadata = {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}, **features}}})}
            table = table.replace_schema_metadata(metadata)
        half = num // 2
        pq.write_table(table.slice(0, half), place / "train-00000-of-00002.parquet", row_group_size=3)
        pq.write_table(table.slice(half), place / "train-00001-of-00002.parquet", compression="zstd")
        return place

    def mask(number, size):
        image = Image.fromarray(maker.indices(size, 4, 255).astype(np.uint8))
        return {"annotation": {"bytes": encoded(image), "path": None} if number != 3 else None}

    place = dataset("masks", 8, mask)
    maker.case(place, "parquet_maps", ["map"], column="annotation", names=[str(number) for number in range(5)])
    maker.case(place, "parquet_maps", ["map"], column="annotation", zero_is_none=True, reduce_zero_label=True, mask_column="annotation")
    maker.case(place, "refused: no second image column \"image\"; choose data.mask_column from: annotation (struct)", ["map"], mask_column="image")
    maker.case(place, "refused: has no boxes of its images, it has: map", ["boxes"])
    wrong = dataset("masks-size", 4, lambda number, size: mask(0, (size[0] + 1, size[1])))
    maker.case(wrong, "refused: sample 0: its class map is of", ["map"])

    names = ["ant", "bee", "cat", "dog"]
    listed = {"labels": {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "Sequence"}}
    some = lambda: sorted(int(value) for value in maker.rng.choice(4, maker.rng.integers(0, 5), replace=False))
    place = dataset("labels", 9, lambda number, _: {"labels": None if number == 4 else some(), "note": "x"}, listed)
    maker.case(place, "parquet_labels", ["labels"], column="labels", names=names)
    flags = lambda: [int(value) for value in maker.rng.choice([-1, 0, 1], 5)]
    place = dataset("flags", 7, lambda number, _: {"tags": flags(), "label": number % 3})
    maker.case(place, "parquet_flags", ["labels", "class"], column="tags", names=list("01234"))
    place = dataset("bools", 7, lambda number, _: {"attributes": [bool(value) for value in maker.rng.integers(0, 2, 3)]})
    maker.case(place, "parquet_flags", ["labels"], column="attributes")
    place = dataset("indices", 7, lambda number, _: {"ids": sorted({number % 5, 3})})
    maker.case(place, "parquet_labels", ["labels"], column="ids", label_column="ids", names=list("01234"))
    place = dataset("labels-far", 4, lambda number, _: {"labels": [number, number + 2]}, {**listed})
    maker.case(place, "refused: sample 2: labels: labels must be 0 to 3, not 4", ["labels"])
    place = dataset("labels-uneven", 4, lambda number, _: {"labels": [1, 1] + [0] * number})
    maker.case(place, "refused: column labels must hold lists of different indices, or of 2 values of 0, 1 and -1", ["labels"])

    def numbers(number, _):
        pose = [float(np.float32(value)) for value in maker.rng.normal(size=3)]
        return {"age": 20.5 + number if number != 2 else None, "pose": pose, "count": number, "label": number % 2}

    place = dataset("values", 8, numbers)
    maker.case(place, "parquet_values", ["values"], columns=["age", "pose"], names=["age", "pose_0", "pose_1", "pose_2"])
    maker.case(place, "parquet_values", ["values"], columns=["count", "age"], value_columns=["count", "age"], names=["count", "age"])
    maker.case(place, 'refused: no column "height" of numbers; choose data.value_columns from: age (double), pose (list<double>), count (int64)', ["values"], value_columns=["height"])
    place = dataset("values-uneven", 4, lambda number, _: {"pose": [1.0] * (2 + number // 3)})
    maker.case(place, "refused: sample 3: pose: must have 2 values as the rows before, not 3", ["values"])

    def objects(size, form, number):
        width, height = size
        found = {"bbox": [], "category": [], "area": [], "iscrowd": [], "id": []}
        for at in range(0 if number == 1 else int(maker.rng.integers(1, 4))):
            left, top = int(maker.rng.integers(0, width - 1)), int(maker.rng.integers(0, height - 1))
            w, h = int(maker.rng.integers(1, width - left + 1)), int(maker.rng.integers(1, height - top + 1))
            found["bbox"].append([left, top, w, h] if form == "xywh" else [left, top, left + w, top + h])
            found["category"].append(int(maker.rng.integers(0, 3)))
            found["area"].append(w * h / 2)
            found["iscrowd"].append(int(maker.rng.integers(0, 2)))
            found["id"].append(f"object {at}")
        return found

    category = {"names": names[:3], "_type": "ClassLabel"}
    for form in ["xywh", "xyxy"]:
        lists = lambda number, size: {"objects": objects(size, form, number)}
        inner = {"bbox": {"feature": {"_type": "Value"}, "length": 4, "_type": "Sequence"}, "category": category}
        place = dataset(f"objects-{form}", 9, lists, {"objects": {"feature": inner, "_type": "Sequence"}})
        maker.case(place, "parquet_boxes", ["boxes"], bbox_format=form, names=names[:3])
        structs = lambda number, size: {"objects": [dict(zip(o, values)) for o in [objects(size, form, number)] for values in zip(*o.values())]}
        place = dataset(f"structs-{form}", 9, structs, {"objects": [{"bbox": [{"_type": "Value"}], "category": category}]})
        maker.case(place, "parquet_boxes", ["boxes"], bbox_format=form, names=names[:3])
    fixed = pa.struct({"bbox": pa.list_(pa.list_(pa.float32(), 4)), "category": pa.list_(pa.int8())})
    plain = lambda number, _: {"objects": {"bbox": [[0.0, 1.0, 2.0, 3.0]], "category": [number % 3]}}
    place = dataset("fixed", 6, plain, {"_types": {"objects": fixed}})
    maker.case(place, "parquet_boxes", ["boxes"], names=["0", "1", "2"])
    faces = dataset("faces", 6, lambda number, _: {"faces": {"bbox": [[0.0, 1.0, 2.0, 3.0]]}})
    maker.case(faces, "parquet_boxes", ["boxes"], names=["object"])
    far = dataset("objects-wrong", 4, lambda number, size: {"objects": {"bbox": [[10, 10, 15, 15]], "category": [0]}}, size=(20, 20))
    words = 'refused: sample 0: a box from 10, 10 to 25, 25 leaves its image of 20x20 pixels; its numbers were taken for xywh, data.bbox_format = "xyxy" is the other way'
    maker.case(far, words, ["boxes"])
    maker.case(far, "parquet_boxes", ["boxes"], bbox_format="xyxy")
    short = dataset("objects-short", 4, lambda number, size: {"objects": {"bbox": [[0, 0, 1, 1]], "category": [0] * (1 + number // 3)}})
    maker.case(short, "refused: sample 3: objects: 1 boxes have 2 of category", ["boxes"])
    three = dataset("objects-three", 4, lambda number, size: {"objects": {"bbox": [[0, 0, 1]], "category": [0]}})
    maker.case(three, "refused: sample 0: objects: a box must be four numbers", ["boxes"])


def make(folder):
    maker = Maker(folder)
    maker.folder.mkdir(parents=True, exist_ok=True)
    for part in (mask_folders, damaged_masks, voc, coco, parquet):
        part(maker)
    (maker.folder / "cases.json").write_text(json.dumps(maker.cases, indent=1))
    print(f"{len(maker.cases)} cases in {folder}")


# Oracles: the targets of each sample in the order of the files, without the images' turns, and the images.


def map_of(data, zero_is_none):
    image = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
    stored = np.asarray(image).astype(int)
    bits = 16 if image.mode.startswith("I") else 8
    packed = (data if isinstance(data, bytes) else Path(data).read_bytes())[24]
    if image.mode == "L" and packed < 8:
        # Pillow scales grey of few bits to 8.
        stored = stored * (2**packed - 1) // 255
    elif image.mode == "1":
        stored = stored.astype(int)
    none = (stored == 2**bits - 1) if packed >= 8 else np.zeros(stored.shape, bool)
    classes = stored - 1 if zero_is_none else stored
    return np.where(none | (classes < 0), NO_CLASS, classes)


def folder_maps(case):
    root, split = Path(case["path"]), case.get("split", "train")
    folders = {"train": ["train", "training"], "test": ["validation"], "validation": ["validation"]}[split]
    images = sorted(path for name in folders for path in (root / "images" / name).glob("*"))
    mask = lambda path: root / case["of"] / path.parent.name / f"{path.stem}.png"
    return images, [{"map": map_of(mask(path), case.get("zero_is_none"))} for path in images]


def labels_of(boxes, num):
    found = [0] * num
    for box in boxes:
        found[box["class"]] = 1 if not box["ignored"] or found[box["class"]] == 1 else -1
    return found


def voc_of(case):
    root = next(path.parent for path in Path(case["path"]).rglob("Annotations"))
    task = "Segmentation" if "map" in case["targets"] else "Main"
    file = root / "ImageSets" / task / {"train": "train.txt", "test": "val.txt"}[case.get("split", "train")]
    names = file.read_text().split() if file.exists() else sorted(path.stem for path in (root / "Annotations").glob("*"))
    trees = {path.stem: ElementTree.parse(path).getroot() for path in (root / "Annotations").glob("*.xml")}
    all_names = {item.text for tree in trees.values() for item in tree.findall("object/name")}
    classes = VOC if all_names <= set(VOC) else sorted(all_names)
    images, targets = [], []
    for name in names:
        images.append(next((root / "JPEGImages").glob(f"{name}.*")))
        boxes = []
        for item in trees[name].findall("object"):
            left, top, right, bottom = (int(item.find("bndbox").find(key).text) for key in ["xmin", "ymin", "xmax", "ymax"])
            ignored = item.findtext("difficult") == "1"
            area = (right - left + 1) * (bottom - top + 1)
            boxes.append({"edges": [left - 1, top - 1, right, bottom], "class": classes.index(item.findtext("name")), "ignored": ignored, "area": area})
        targets.append({"boxes": boxes, "labels": labels_of(boxes, len(classes))})
        if "map" in case["targets"]:
            targets[-1]["map"] = map_of(root / "SegmentationClass" / f"{name}.png", False)
    return images, targets


def coco_of(case):
    root, split = Path(case["path"]), {"train": "train2017", "test": "val2017"}[case.get("split", "train")]
    file, folder = root / "annotations" / f"instances_{split}.json", root / split
    if not file.exists():
        file, folder = root / "train" / "_annotations.coco.json", root / "train"
    with contextlib.redirect_stdout(io.StringIO()):
        found = COCO(file)
    ids = sorted(found.getCatIds())
    images, targets = [], []
    for image in found.dataset["images"]:
        images.append(folder / image["file_name"])
        boxes = []
        for item in found.loadAnns(found.getAnnIds(imgIds=[image["id"]])):
            left, top, width, height = item["bbox"]
            if width > 0 and height > 0:
                box = {"edges": [left, top, left + width, top + height], "class": ids.index(item["category_id"])}
                boxes.append(box | {"ignored": bool(item.get("iscrowd")), "area": item.get("area", width * height)})
        targets.append({"boxes": boxes, "labels": labels_of(boxes, len(ids))})
    return images, targets


def rows_of(case):
    rows = [row for path in sorted(Path(case["path"]).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return [row["image"]["bytes"] for row in rows], rows


def parquet_maps(case):
    images, rows = rows_of(case)
    masks = [row[case["column"]] for row in rows]
    return images, [{"map": mask and map_of(mask["bytes"], case.get("zero_is_none"))} for mask in masks]


def parquet_labels(case):
    images, rows = rows_of(case)
    hot = lambda found: found if found is None else [int(label in found) for label in range(len(case["names"]))]
    return images, [{"labels": hot(row[case["column"]])} for row in rows]


def parquet_flags(case):
    images, rows = rows_of(case)
    return images, [{"labels": [int(value) for value in row[case["column"]]], "class": row.get("label")} for row in rows]


def parquet_values(case):
    images, rows = rows_of(case)
    flat = lambda value: value if isinstance(value, list) else [value]
    return images, [{"values": [value for name in case["columns"] for value in flat(row[name])]} for row in rows]


def parquet_boxes(case):
    images, rows = rows_of(case)
    targets = []
    for row in rows:
        found = row["objects" if "objects" in row else "faces"]
        if isinstance(found, dict):
            found = [dict(zip(found, values)) for values in zip(*found.values())]
        boxes = []
        for item in found:
            left, top, right, bottom = item["bbox"]
            if case.get("bbox_format", "xywh") == "xywh":
                right, bottom = left + right, top + bottom
            area = item.get("area", (right - left) * (bottom - top))
            boxes.append({"edges": [left, top, right, bottom], "class": item.get("category", 0), "ignored": bool(item.get("iscrowd")), "area": area})
        targets.append({"boxes": boxes})
    return images, targets


ORACLES = {
    "folder_maps": folder_maps,
    "voc": voc_of,
    "coco": coco_of,
    "parquet_maps": parquet_maps,
    "parquet_labels": parquet_labels,
    "parquet_flags": parquet_flags,
    "parquet_values": parquet_values,
    "parquet_boxes": parquet_boxes,
}


# Comparison


def turned(values, image):
    """An array of the stored pixels, turned by Pillow as it turns the image."""
    carrier = Image.fromarray(values.astype(np.int32), "I")
    carrier.info.clear()
    exif = Image.Exif()
    exif[0x112] = image.getexif().get(0x112, 1)
    carrier.info["exif"] = exif.tobytes()
    carrier.getexif()[0x112] = exif[0x112]
    return np.asarray(ImageOps.exif_transpose(carrier)).astype(int)


def turned_box(edges, image):
    """A box, turned by turning pictures of where its columns and rows begin: exact to a 64th of a pixel."""
    width, height = image.size
    method = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
    method = method.get(image.getexif().get(0x112, 1))
    if method is None:
        return edges
    # Pixels of a pair of pictures hold the coordinates of their centres in the stored image; edges are found by fitting.
    ys, xs = np.mgrid[0:height, 0:width]
    xs, ys = (np.asarray(Image.fromarray(v.astype(np.float32)).transpose(Image.Transpose[method])) + 0.5 for v in (xs, ys))
    rows, columns = np.mgrid[0 : xs.shape[0], 0 : xs.shape[1]] + 0.5
    design = np.stack([xs.ravel(), ys.ravel(), np.ones(xs.size)], 1)
    to_x, to_y = (np.linalg.lstsq(design, v.ravel(), rcond=None)[0] for v in (columns, rows))
    corners = np.array([[edges[0], edges[1], 1], [edges[2], edges[3], 1]])
    x, y = corners @ to_x, corners @ to_y
    return [min(x), min(y), max(x), max(y)]


def same(kind, ours, theirs, image, upright):
    if theirs is None:
        return ours is None
    if kind == "map":
        expected = turned(theirs, image) if upright else theirs
        return [ours["height"], ours["width"]] == list(expected.shape) and ours["classes"] == expected.ravel().tolist()
    if kind == "values":
        close = lambda a, b: a is None if b is None else math.isclose(a, b, rel_tol=1e-6)
        return len(ours) == len(theirs) and all(map(close, ours, theirs))
    if kind == "boxes":
        if len(ours) != len(theirs):
            return False
        for one, other in zip(ours, theirs):
            edges = turned_box(other["edges"], image) if upright else other["edges"]
            if max(abs(a - b) for a, b in zip(one["edges"], edges)) > 1e-3:
                return False
            if (one["class"], one["ignored"]) != (other["class"], other["ignored"]) or abs(one["area"] - other["area"]) > 1e-2:
                return False
        return True
    return ours == theirs


def judged(case, found):
    """None if all is well, else what is wrong."""
    oracle = case["oracle"]
    if oracle.startswith("refused: "):
        words = oracle.removeprefix("refused: ").split("|")
        if "error" not in found:
            return "was not refused"
        if "\n" in found["error"] or not any(part in found["error"] for part in words):
            return f"was refused in other words: {found['error']}"
        return None if found["code"] in (65, 66) else f"has exit code {found['code']}"
    if "error" in found:
        return f"was refused: {found['error']}"
    if "names" in case and found["names"][0] != case["names"]:
        return f"has names {found['names'][0]}"
    if not set(case["targets"]) - {"values"} <= set(found["kinds"]):
        return f"has kinds {found['kinds']}"
    images, targets = ORACLES[oracle](case)
    if len(images) != len(found["samples"]):
        return f"has {len(found['samples'])} samples, not {len(images)}"
    num_objects = 0
    for number, (image, target, sample) in enumerate(zip(images, targets, found["samples"])):
        image = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
        upright = case.get("exif_orientation", True)
        pixels = np.asarray((ImageOps.exif_transpose(image) if upright else image).convert("RGB"))
        if sample["pixels"] != pixels.ravel().tolist():
            return f"sample {number} has other pixels"
        for kind, ours in zip(case["targets"], sample["targets"]):
            if not same(kind, ours, target[kind], image, upright):
                return f"sample {number}: {kind} is {str(ours)[:300]}, not {str(target[kind])[:300]}"
            num_objects += len(ours) if kind == "boxes" else 1
    if num_objects == 0:
        return "has nothing to compare"
    if "without_area" in case and not any(f"without any area left out: {case['without_area']}" in note for note in found["notes"]):
        return f"has notes {found['notes']}"
    return None


def compare(folder, results):
    cases = json.loads((Path(folder) / "cases.json").read_text())
    found = json.loads(Path(results).read_text())
    assert len(cases) == len(found), f"{len(cases)} cases, {len(found)} results"
    wrong, counts = 0, {}
    for case, result in zip(cases, found):
        problem = judged(case, result)
        key = case["oracle"].split(":")[0]
        counts[key] = counts.get(key, 0) + (problem is None)
        if problem:
            wrong += 1
            options = {key: value for key, value in case.items() if key not in ("path", "oracle", "names")}
            print("WRONG", Path(case["path"]).relative_to(folder), options, problem)
    for key, num in sorted(counts.items()):
        print(f"{key:15} {num:4} as expected")
    print(f"{len(cases) - wrong} of {len(cases)} datasets as expected")
    return 1 if wrong else 0


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    sys.exit({"make": make, "compare": compare}[command](*arguments))
