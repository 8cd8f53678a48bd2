#!/usr/bin/env python3
"""Image files of every variety, and whether mlomae makes of them what Pillow makes of them.

    images.py make FOLDER               writes the files to FOLDER, what is expected to FOLDER.json
    images.py compare FOLDER DECODED    holds the output of the example decode_images against Pillow

Pillow's `ImageOps.exif_transpose(image).convert("RGB")` is the measure. A file is expected to be `equal` in every pixel,
to differ by at most so many `levels`, or to be `refused` with certain words. JPEG files that Pillow cannot write are made
by `cjpeg` (libjpeg-turbo-progs), by hand where no program writes them.
"""

import io
import json
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SEED = 20261127
MIN_JPEG, MIN_OTHERS = 500, 200


class Files:
    """Writes files with what is expected of them."""

    def __init__(self, folder):
        self.folder, self.expected = Path(folder), {}
        self.folder.mkdir(parents=True, exist_ok=True)
        self.random = random.Random(SEED)

    def add(self, name, data, expect="equal"):
        assert name not in self.expected, name
        (self.folder / name).write_bytes(data)
        self.expected[name] = expect

    def picture(self, mode="RGB", size=None, smooth=True):
        """Smooth colours with some noise: what upsampling and DCT are sensitive to."""
        width, height = size or (self.random.randint(1, 40), self.random.randint(1, 40))
        rng = np.random.default_rng(self.random.getrandbits(32))
        bands = {"L": 1, "RGB": 3, "CMYK": 4, "RGBA": 4, "LA": 2}[mode]
        coarse = rng.integers(0, 256, (height // 6 + 2, width // 6 + 2, bands), dtype=np.uint8)
        layers = [Image.fromarray(coarse[:, :, band]).resize((width, height), Image.BICUBIC) for band in range(bands)]
        values = np.stack([np.asarray(layer) for layer in layers], axis=2).astype(float)
        if smooth:
            values = np.clip(values + rng.normal(0, 6, values.shape), 0, 255)
        else:
            values = rng.integers(0, 256, values.shape)
        values = values.astype(np.uint8)
        return Image.fromarray(values[:, :, 0] if bands == 1 else values, mode)


def saved(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def exif(orientation, big=False):
    order = ">" if big else "<"
    start = b"MM\0*" if big else b"II*\0"
    entry = struct.pack(order + "HHIHH", 0x112, 3, 1, orientation, 0)
    return b"Exif\0\0" + start + struct.pack(order + "IH", 8, 1) + entry + bytes(4)


# JPEG


def segment(marker, data):
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def segments(data):
    """(marker, place, end) of each segment up to and with the first scan header."""
    at = 2
    while True:
        marker, length = data[at + 1], struct.unpack(">H", data[at + 2 : at + 4])[0]
        yield marker, at, at + 2 + length
        if marker == 0xDA:
            return
        at += 2 + length


def without(data, marker):
    for found, at, end in reversed(list(segments(data))):
        if found == marker:
            data = data[:at] + data[end:]
    return data


def after_soi(data, more):
    return data[:2] + more + data[2:]


def change(data, marker, edit):
    """With the payload of the first segment of this marker edited."""
    for found, at, end in segments(data):
        if found == marker:
            return data[:at] + segment(marker, bytes(edit(bytearray(data[at + 4 : end])))) + data[end:]
    raise AssertionError(f"no segment {marker:x}")


def renamed(data, marker, new):
    """With the first segment of this marker under another marker."""
    for found, at, _ in segments(data):
        if found == marker:
            return data[: at + 1] + bytes([new]) + data[at + 2 :]
    raise AssertionError(f"no segment {marker:x}")


def cjpeg(image, *options, scans=None):
    pnm = io.BytesIO()
    image.save(pnm, "PPM")
    if scans is None:
        return subprocess.run(["cjpeg", *options], input=pnm.getvalue(), capture_output=True, check=True).stdout
    script = Path("/tmp") / f"mlomae-scans-{SEED}-{id(scans)}"
    script.write_text(scans)
    try:
        return cjpeg(image, *options, "-scans", str(script))
    finally:
        script.unlink()


SAMPLINGS = [
    "1x1",
    "2x1",
    "1x2",
    "2x2",
    "4x1",
    "1x4",
    "4x2",
    "2x4",
    "4x4",
    "3x1",
    "1x3",
    "3x3",
    "1x1,2x1,2x1",
    "1x1,1x2,1x2",
]
SAMPLINGS += ["1x1,2x2,2x2", "2x2,2x1,1x2", "2x2,1x2,2x1", "2x1,1x1,2x1", "2x2,2x2,1x1", "1x1,1x1,2x2"]
NOT_INTERLEAVED = "0;1;2;"
PARTLY_INTERLEAVED = "0;1 2;"
OTHER_ORDER = "2;0;1;"
SUCCESSIVE = "0 1 2: 0-0, 0, 1;\n0: 1-5, 0, 2;\n2: 1-63, 0, 1;\n1: 1-63, 0, 1;\n0: 6-63, 0, 2;\n0: 1-63, 2, 1;\n"
SUCCESSIVE += "0 1 2: 0-0, 1, 0;\n2: 1-63, 1, 0;\n1: 1-63, 1, 0;\n0: 1-63, 1, 0;\n"


def jpeg_samplings(files):
    for sampling in SAMPLINGS:
        full = sampling if "," in sampling else f"{sampling},1x1,1x1"
        product = sum(int(part[0]) * int(part[2]) for part in full.split(","))
        kinds = {
            "noninterleaved": (["-quality", "90"], NOT_INTERLEAVED),
            "partly": (["-quality", "75", "-optimize"], PARTLY_INTERLEAVED),
            "order": (["-quality", "60"], OTHER_ORDER),
            "restart-noninterleaved": (["-quality", "85", "-restart", "1B"], NOT_INTERLEAVED),
            "arith-noninterleaved": (["-quality", "85", "-arithmetic"], NOT_INTERLEAVED),
            "successive": (["-quality", "80"], SUCCESSIVE),
        }
        # An interleaved scan holds at most ten blocks a unit; the progressive scripts' first scan is interleaved.
        if product <= 10:
            kinds |= {
                "baseline": (["-quality", "85"], None),
                "restart": (["-quality", "85", "-restart", "1"], None),
                "progressive": (["-quality", "85", "-progressive"], None),
                "arith": (["-quality", "85", "-arithmetic"], None),
                "arith-progressive": (["-quality", "85", "-arithmetic", "-progressive", "-restart", "2B"], None),
            }
        else:
            del kinds["successive"]
        for kind, (options, scans) in kinds.items():
            for number in range(2):
                image = files.picture(
                    size=None if number else (files.random.randint(30, 70), files.random.randint(30, 70))
                )
                data = cjpeg(image, "-sample", full, *options, scans=scans)
                files.add(f"sampling-{full.replace(',', '_')}-{kind}-{number}.jpg", data)


def jpeg_by_pillow(files):
    for number in range(160):
        mode = files.random.choice(["L", "RGB", "RGB", "RGB", "CMYK"])
        options = {"quality": files.random.choice([5, 30, 60, 75, 90, 95, 100])}
        if mode == "RGB":
            options["subsampling"] = files.random.choice(["4:4:4", "4:2:2", "4:2:0"])
        options["progressive"] = files.random.random() < 0.4
        options["optimize"] = files.random.random() < 0.3
        if files.random.random() < 0.3:
            options["restart_marker_blocks"] = files.random.randint(1, 5)
        files.add(f"pillow-{mode}-{number}.jpg", saved(files.picture(mode), "JPEG", **options))


def jpeg_colours(files):
    """Which colours a file means follows from its markers and component ids."""
    rgb = cjpeg(files.picture(size=(33, 21)), "-rgb", "-sample", "1x1")
    ycc = cjpeg(files.picture(size=(33, 21)), "-quality", "90")
    adobe = lambda transform: segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))
    bare_ycc, bare_rgb = without(ycc, 0xE0), without(without(rgb, 0xEE), 0xE0)
    ids = lambda data, ids: change(
        change(data, 0xC0, lambda frame: set_ids(frame, 6, 3, ids)), 0xDA, lambda scan: set_ids(scan, 1, 2, ids)
    )

    def set_ids(payload, start, step, ids):
        for place, name in enumerate(ids):
            payload[start + step * place] = name
        return payload

    files.add("colours-rgb.jpg", rgb)
    files.add("colours-bare-ycc.jpg", bare_ycc)
    files.add("colours-bare-rgb.jpg", bare_rgb)
    for name, numbers in [
        ("012", (0, 1, 2)),
        ("123", (1, 2, 3)),
        ("RGB", b"RGB"),
        ("odd", (7, 9, 200)),
        ("321", (3, 2, 1)),
    ]:
        files.add(f"colours-ids-{name}.jpg", ids(bare_ycc, numbers))
        files.add(f"colours-ids-{name}-jfif.jpg", ids(ycc, numbers))
    for transform in range(4):
        files.add(f"colours-adobe-{transform}.jpg", after_soi(bare_ycc, adobe(transform)))
        files.add(f"colours-adobe-{transform}-after-jfif.jpg", change_after(ycc, 0xE0, adobe(transform)))
        files.add(f"colours-adobe-{transform}-before-jfif.jpg", after_soi(ycc, adobe(transform)))
    cmyk = saved(files.picture("CMYK", (30, 20)), "JPEG", quality=90)
    for transform in (0, 2):
        files.add(f"colours-cmyk-adobe-{transform}.jpg", after_soi(without(cmyk, 0xEE), adobe(transform)))
    files.add("colours-cmyk-bare.jpg", without(cmyk, 0xEE))
    for sampling in ("1x1", "2x2", "2x1"):
        files.add(
            f"colours-grey-{sampling}.jpg", cjpeg(files.picture(size=(35, 27)), "-grayscale", "-sample", sampling)
        )


def change_after(data, marker, more):
    for found, _, end in segments(data):
        if found == marker:
            return data[:end] + more + data[end:]
    raise AssertionError(f"no segment {marker:x}")


def jpeg_wrapping(files):
    """What stands around and between the parts of an image."""
    base = saved(files.picture(size=(37, 29)), "JPEG", quality=85)
    progressive = saved(files.picture(size=(37, 29)), "JPEG", quality=85, progressive=True)
    files.add("wrap-large-segments.jpg", after_soi(base, segment(0xE2, bytes(65000)) * 3))
    files.add("wrap-large-segments-exif.jpg", after_soi(base, segment(0xE2, bytes(65000)) * 3 + segment(0xE1, exif(6))))
    files.add("wrap-comment.jpg", after_soi(base, segment(0xFE, b"\xff\xd9\xff\xda\xff\xc0 not markers")))
    files.add("wrap-fill-bytes.jpg", after_soi(base, b"\xff\xff\xff"))
    files.add("wrap-trailing.jpg", base + b"trailing bytes \xff\xd8\xff\xe0")
    files.add("wrap-two-images.jpg", base + saved(files.picture(size=(50, 50)), "JPEG"))
    files.add("wrap-extra-before-end.jpg", base[:-2] + b"\x00\x12\x34" + base[-2:])
    files.add("wrap-trailing-progressive.jpg", progressive + bytes(100))
    files.add("wrap-before-start.jpg", b"\0" + base, "refused: begins with 00 ff d8")
    files.add("wrap-is-png.jpg", saved(files.picture(), "PNG"))
    mpo = io.BytesIO()
    first, second = files.picture(size=(40, 30)), files.picture(size=(40, 30))
    first.save(mpo, "MPO", save_all=True, append_images=[second])
    files.add("wrap-mpo.jpg", mpo.getvalue())
    for orientation in range(1, 9):
        files.add(
            f"exif-{orientation}.jpg", after_soi(base, segment(0xE1, exif(orientation, big=orientation % 2 == 0)))
        )
        files.add(f"exif-grey-{orientation}.jpg", saved(files.picture("L"), "JPEG", exif=exif(orientation)))
    for name, data in [
        ("0", exif(0)),
        ("9", exif(9)),
        ("empty", b"Exif\0\0"),
        ("cut", exif(6)[:20]),
        ("offset", exif(6)[:10] + b"\xff" * 4),
    ]:
        files.add(f"exif-bad-{name}.jpg", after_soi(base, segment(0xE1, data)))


def jpeg_refused(files):
    base = cjpeg(files.picture(size=(75, 59)), "-quality", "80")
    progressive = cjpeg(files.picture(size=(75, 59)), "-quality", "80", "-progressive")
    parts = cjpeg(files.picture(size=(75, 59)), "-quality", "80", scans=NOT_INTERLEAVED)
    arith = cjpeg(files.picture(size=(75, 59)), "-quality", "80", "-progressive", "-arithmetic")
    for name, data in [("base", base), ("progressive", progressive), ("parts", parts), ("arith", arith)]:
        start = list(segments(data))[-1][2]
        for number in range(12):
            cut = start + (len(data) - start) * (number + 1) // 14
            files.add(f"cut-{name}-{number}.jpg", data[:cut], "refused: truncated jpeg")
            if name != "arith":
                files.add(f"cut-{name}-{number}-with-end.jpg", data[:cut] + b"\xff\xd9", "refused: truncated|ends")
    for name, data in [("progressive", progressive), ("parts", parts), ("arith", arith)]:
        places = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
        for number, at in enumerate(places[1:]):
            files.add(
                f"cut-{name}-before-scan-{number}.jpg", data[:at] + b"\xff\xd9", "refused: ends before its last scan"
            )
    files.add("cut-without-end.jpg", base[:-2], "refused: truncated")
    bits = lambda data, num: change(data, 0xC0, lambda frame: bytes([num]) + bytes(frame[1:]))
    files.add("process-12-bit.jpg", renamed(bits(base, 12), 0xC0, 0xC1), "refused: 12 bits a channel")
    for marker, words in [
        (0xC3, "lossless"),
        (0xC5, "hierarchical"),
        (0xC7, "hierarchical"),
        (0xCB, "lossless"),
        (0xF7, "JPEG-LS"),
    ]:
        files.add(f"process-{marker:02x}.jpg", renamed(base, 0xC0, marker), f"refused: unsupported jpeg image: {words}")
    fractional = change(base, 0xC0, lambda frame: frame[:7] + b"\x31" + frame[8:10] + b"\x21" + frame[11:])
    files.add("process-fractional.jpg", fractional, "refused: unsupported jpeg image: Fractional sampling")
    two = change(base, 0xC0, lambda frame: frame[:5] + b"\2" + frame[6:12])
    files.add("process-two-components.jpg", two, "refused: 2 colour components")
    rows = lambda num: change(base, 0xC0, lambda frame: frame[:1] + struct.pack(">H", num) + frame[3:])
    files.add("process-dnl.jpg", rows(0), "refused: DNL")
    files.add(
        "process-huge.jpg",
        change(base, 0xC0, lambda frame: frame[:1] + b"\xff\xff\xff\xff" + frame[5:]),
        "refused: image size",
    )
    files.add("process-taller.jpg", rows(200), "refused: ends early")


# PNG


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values, depth, colour, interlaced=False, before=b"", after=b""):
    """`values` [height, width, channels], raw samples of `depth` bits."""
    height, width, _ = values.shape

    def rows(part):
        out = b""
        for row in part:
            flat = row.reshape(-1).astype(np.uint16)
            if depth == 16:
                packed = flat.astype(">u2").tobytes()
            elif depth == 8:
                packed = flat.astype(np.uint8).tobytes()
            else:
                bits = ((flat[:, None] >> np.arange(depth - 1, -1, -1)) & 1).astype(np.uint8).reshape(-1)
                packed = np.packbits(bits).tobytes()
            out += b"\0" + packed
        return out

    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    if interlaced:
        parts = [values[top::down, left::right] for top, left, down, right in passes]
        data = b"".join(rows(part) for part in parts if part.shape[0] and part.shape[1])
    else:
        data = rows(values)
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    body = png_chunk(b"IHDR", head) + before + png_chunk(b"IDAT", zlib.compress(data)) + after + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def png_files(files):
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
    depths = {0: (1, 2, 4, 8), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8,), 6: (8, 16)}
    rng = np.random.default_rng(SEED)
    for colour, allowed in depths.items():
        for depth in allowed:
            for interlaced in (False, True):
                for number in range(3):
                    size = (files.random.randint(1, 40), files.random.randint(1, 40))
                    values = rng.integers(0, 1 << depth, (size[1], size[0], channels[colour]))
                    before = png_chunk(b"gAMA", struct.pack(">I", 45455 if number == 1 else 100000)) if number else b""
                    if colour == 3:
                        before += png_chunk(b"PLTE", rng.integers(0, 256, 3 << depth).astype(np.uint8).tobytes())
                    if number == 2 and colour in (0, 2, 3):
                        keys = {
                            0: struct.pack(">H", 1),
                            2: struct.pack(">HHH", 1, 2, 3),
                            3: bytes([0, 128])[: 1 << depth],
                        }
                        before += png_chunk(b"tRNS", keys[colour])
                    name = f"png-{colour}-{depth}-{'adam7' if interlaced else 'plain'}-{number}.png"
                    files.add(name, png(values, depth, colour, interlaced, before))
    # Pillow clips 16-bit grey at 255 when it converts; every other reader scales, and so does mlomae.
    values = rng.integers(0, 1 << 16, (20, 30, 1))
    files.add("png-grey16.png", png(values, 16, 0), "scaled")
    values = rng.integers(0, 256, (20, 30, 3))
    for orientation in range(1, 9):
        chunk = png_chunk(b"eXIf", exif(orientation)[6:])
        files.add(f"png-exif-{orientation}.png", png(values, 8, 2, before=chunk))
        files.add(f"png-exif-behind-{orientation}.png", png(values, 8, 2, after=chunk))
    whole = png(values, 8, 2)
    files.add("png-cgbi.png", whole[:8] + png_chunk(b"CgBI", b"\x50\0\x20\x06") + whole[8:], "refused: CgBI")
    for number, cut in enumerate((20, 40, len(whole) // 2, len(whole) - 13, len(whole) - 1)):
        files.add(f"png-cut-{number}.png", whole[:cut], "refused: truncated png")
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 0x55
    files.add("png-broken.png", bytes(broken), "refused: corrupt png")
    frames = [files.picture(size=(30, 20)) for _ in range(3)]
    files.add("png-animated.png", saved(frames[0], "PNG", save_all=True, append_images=frames[1:], duration=50))
    files.add(
        "png-animated-default.png", saved(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True)
    )


# WebP, BMP, TIFF, GIF


def webp_files(files):
    for number in range(30):
        lossless = number % 3 == 0
        mode = files.random.choice(["RGB", "RGBA"])
        options = {"lossless": lossless, "quality": files.random.choice([10, 50, 80, 100]), "method": number % 7}
        files.add(f"webp-{mode}-{number}.webp", saved(files.picture(mode), "WEBP", **options))
    for orientation in range(1, 9):
        data = saved(files.picture(), "WEBP", lossless=True, exif=exif(orientation))
        files.add(f"webp-exif-{orientation}.webp", data)
    for number, mode in enumerate(["RGB", "RGBA"]):
        frames = [files.picture(mode, (30, 20)) for _ in range(3)]
        files.add(
            f"webp-animated-{number}.webp",
            saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True),
        )
    whole = saved(files.picture(size=(40, 40)), "WEBP", quality=90)
    for number in range(1, 6):
        files.add(f"webp-cut-{number}.webp", whole[: len(whole) * number // 6], "refused: webp")


def bmp(width, height, bits, data, palette=b"", compression=0, masks=b"", top_down=False):
    offset = 14 + 40 + len(masks) + len(palette)
    head = struct.pack(
        "<IiiHHIIiiII",
        40,
        width,
        -height if top_down else height,
        1,
        bits,
        compression,
        len(data),
        2835,
        2835,
        len(palette) // 4,
        0,
    )
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + head + masks + palette + data


def rle8(rows):
    out = b""
    for row in rows:
        at = 0
        while at < len(row):
            run = 1
            while at + run < len(row) and run < 255 and row[at + run] == row[at]:
                run += 1
            out += bytes([run, row[at]])
            at += run
        out += b"\0\0"
    return out + b"\0\1"


def bmp_files(files):
    rng = np.random.default_rng(SEED + 1)
    for number in range(12):
        mode = ["L", "RGB", "RGBA", "P", "1"][number % 5]
        image = files.picture("RGBA" if mode == "RGBA" else "RGB")
        files.add(f"bmp-{mode}-{number}.bmp", saved(image.convert(mode), "BMP"))
    for number in range(4):
        width, height = files.random.randint(1, 40), files.random.randint(1, 40)
        stride = (2 * width + 3) // 4 * 4
        values = rng.integers(0, 1 << 15, (height, width)).astype("<u2")
        rows = b"".join(row.tobytes().ljust(stride, b"\0") for row in values)
        # Pillow rounds 5 and 6 bits down, others to the nearest.
        files.add(f"bmp-555-{number}.bmp", bmp(width, height, 16, rows), "levels: 1")
        values = rng.integers(0, 1 << 16, (height, width)).astype("<u2")
        rows = b"".join(row.tobytes().ljust(stride, b"\0") for row in values)
        files.add(
            f"bmp-565-{number}.bmp",
            bmp(width, height, 16, rows, masks=struct.pack("<III", 0xF800, 0x7E0, 0x1F), compression=3),
            "levels: 1",
        )
        palette = rng.integers(0, 256, (256, 4)).astype(np.uint8)
        palette[:, 3] = 0
        nibbles = rng.integers(0, 16, (height, (width + 1) // 2 * 2)).astype(np.uint8)
        packed = nibbles[:, ::2] << 4 | nibbles[:, 1::2]
        rows = b"".join(bytes(row).ljust((packed.shape[1] + 3) // 4 * 4, b"\0") for row in packed)
        files.add(f"bmp-4-{number}.bmp", bmp(width, height, 4, rows, palette[:16].tobytes()))
        runs = b"".join(bytes([width, 0x12 * (y % 14)]) + b"\0\0" for y in range(height)) + b"\0\1"
        files.add(f"bmp-rle4-{number}.bmp", bmp(width, height, 4, runs, palette[:16].tobytes(), 2))
        values = np.repeat(rng.integers(0, 256, (height, (width + 3) // 4)), 4, axis=1)[:, :width].astype(np.uint8)
        files.add(
            f"bmp-rle8-{number}.bmp", bmp(width, height, 8, rle8([bytes(row) for row in values]), palette.tobytes(), 1)
        )
        stride = (width + 3) // 4 * 4
        rows = b"".join(bytes(row).ljust(stride, b"\0") for row in values)
        files.add(f"bmp-top-down-{number}.bmp", bmp(width, height, 8, rows, palette.tobytes(), top_down=True))
    whole = saved(files.picture(size=(40, 40)), "BMP")
    for number in range(1, 6):
        files.add(f"bmp-cut-{number}.bmp", whole[: len(whole) * number // 6], "refused: bmp")


def tiff_files(files):
    for compression in ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"]:
        for mode in ["1", "L", "RGB", "RGBA"]:
            image = files.picture(mode if mode == "RGBA" else "RGB").convert(mode)
            files.add(f"tiff-{mode}-{compression}.tif", saved(image, "TIFF", compression=compression))
            if compression in ("tiff_lzw", "tiff_adobe_deflate") and mode != "1":
                data = saved(image, "TIFF", compression=compression, tiffinfo={317: 2})
                files.add(f"tiff-{mode}-{compression}-predictor.tif", data)
    for compression, expect in [("group3", "refused: unsupported tiff image"), ("group4", "equal")]:
        data = saved(files.picture().convert("1"), "TIFF", compression=compression)
        files.add(f"tiff-{compression}.tif", data, expect)
    for mode, words in [("P", "Palette"), ("CMYK", "CMYK"), ("LA", "pixels of type")]:
        image = files.picture(mode) if mode != "P" else files.picture().convert("P")
        files.add(f"tiff-{mode}.tif", saved(image, "TIFF"), f"refused: unsupported tiff image: pixels of type|{words}")
    files.add(
        "tiff-grey16.tif", saved(Image.fromarray(np.arange(600, dtype="u2").reshape(20, 30) * 109), "TIFF"), "scaled"
    )
    files.add(
        "tiff-signed.tif",
        saved(files.picture("L"), "TIFF", tiffinfo={339: 2}),
        "refused: unsupported tiff image: samples",
    )
    files.add("tiff-jpeg.tif", saved(files.picture(), "TIFF", compression="jpeg"), "refused: JPEG inside")
    files.add("tiff-float.tif", saved(Image.fromarray(np.ones((4, 5), dtype=np.float32)), "TIFF"), "refused: tiff")
    for orientation in range(1, 9):
        files.add(f"tiff-orientation-{orientation}.tif", saved(files.picture(), "TIFF", tiffinfo={274: orientation}))
    pages = [files.picture(size=(30, 20)), files.picture(size=(11, 12))]
    files.add("tiff-pages.tif", saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    for mode in ("L", "RGB"):
        files.add(f"tiff-big-{mode}.tif", saved(files.picture(mode), "TIFF", big_tiff=True))
    files.add("tiff-white-is-zero.tif", saved(files.picture("L"), "TIFF", tiffinfo={262: 0}))
    whole = saved(files.picture(size=(40, 40)), "TIFF", compression="tiff_lzw")
    for number in range(1, 6):
        files.add(f"tiff-cut-{number}.tif", whole[: len(whole) * number // 6], "refused: tiff")


def gif_files(files):
    for number in range(12):
        mode = ["L", "P", "1"][number % 3]
        options = {"interlace": number % 2}
        image = files.picture().convert(mode)
        if number % 4 == 1:
            options["transparency"] = 3
        files.add(f"gif-{mode}-{number}.gif", saved(image, "GIF", **options))
    small = bytearray(saved(files.picture(size=(20, 10)).convert("P"), "GIF"))
    small[6:10] = struct.pack("<HH", 27, 15)
    files.add("gif-small-frame.gif", bytes(small), "refused: does not cover the image")
    frames = [files.picture(size=(30, 20)) for _ in range(3)]
    files.add("gif-animated.gif", saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50))
    files.add("gif-rgba.gif", saved(files.picture("RGBA"), "GIF"))
    whole = saved(files.picture(size=(40, 40)), "GIF")
    for number in range(1, 6):
        files.add(f"gif-cut-{number}.gif", whole[: len(whole) * number // 6], "refused: gif")


def others(files):
    for name, data, words in [
        ("other.avif", saved(files.picture(size=(32, 32)), "AVIF"), "not AVIF"),
        ("other.jp2", saved(files.picture(), "JPEG2000"), "not JPEG 2000"),
        ("other.ppm", saved(files.picture(), "PPM"), "not PNM"),
        ("other.ico", saved(files.picture(size=(16, 16)), "ICO"), "not ICO"),
        ("other.pdf", saved(files.picture(), "PDF"), "not PDF"),
        ("other.svg", b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "not SVG"),
        ("other.html", b"<!DOCTYPE html><title>404</title>", "not an HTML page"),
        ("other.psd", b"8BPS\0\1" + bytes(20), "not PSD"),
        ("other.jxl", b"\xff\x0a\xfa\x1f\x01", "not JPEG XL"),
        ("other.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "not HEIC"),
        ("other.empty", b"", "begins with nothing"),
    ]:
        files.add(name, data, "refused: " + words)


def make(folder):
    files = Files(folder)
    for part in (jpeg_samplings, jpeg_by_pillow, jpeg_colours, jpeg_wrapping, jpeg_refused):
        part(files)
    num_jpeg = len(files.expected)
    for part in (png_files, webp_files, bmp_files, tiff_files, gif_files, others):
        part(files)
    num_others = len(files.expected) - num_jpeg
    Path(str(folder).rstrip("/") + ".json").write_text(json.dumps(files.expected, indent=0))
    print(f"{num_jpeg} JPEG files and {num_others} others in {folder}")
    assert num_jpeg >= MIN_JPEG and num_others >= MIN_OTHERS


# Comparison


def oracle(path):
    image = Image.open(path)
    image.seek(0) if getattr(image, "is_animated", False) else None
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)


def judged(path, decoded, expect):
    """None if all is well, else what is wrong."""
    refusal = decoded / f"{path.name}.refused"
    if expect.startswith("refused: "):
        if not refusal.exists():
            return "was not refused"
        words = refusal.read_text()
        allowed = expect.removeprefix("refused: ").split("|")
        return None if any(part in words for part in allowed) else f"was refused in other words: {words}"
    if refusal.exists():
        return f"was refused: {refusal.read_text()}"
    ours = np.asarray(Image.open(decoded / f"{path.name}.pnm").convert("RGB")).astype(int)
    if expect == "scaled":
        grey = np.asarray(Image.open(path)).astype(int)
        theirs = np.repeat(((grey + 128) // 257)[:, :, None], 3, axis=2)
    else:
        theirs = oracle(path)
    if ours.shape != theirs.shape:
        return f"has shape {ours.shape}, not {theirs.shape}"
    difference = int(abs(ours - theirs).max())
    allowed = int(expect.removeprefix("levels: ")) if expect.startswith("levels: ") else 0
    return None if difference <= allowed else f"differs by up to {difference} levels, {allowed} are allowed"


def compare(folder, decoded):
    folder, decoded = Path(folder), Path(decoded)
    expected = json.loads(Path(str(folder).rstrip("/") + ".json").read_text())
    counts, wrong = {}, []
    for name, expect in expected.items():
        problem = judged(folder / name, decoded, expect)
        suffix = Path(name).suffix[1:]
        suffix = "other" if name.startswith("other.") else suffix
        key = (suffix, expect.split(":")[0])
        counts[key] = counts.get(key, 0) + (problem is None)
        if problem:
            wrong.append(f"{name} {problem}")
    for (suffix, expect), num in sorted(counts.items()):
        meaning = {
            "equal": "equal to Pillow in every pixel",
            "refused": "refused by name",
            "scaled": "scaled as documented",
        }
        print(f"{suffix:5} {num:4} {meaning.get(expect, 'within their levels')}")
    for line in wrong:
        print("WRONG", line)
    print(f"{len(expected) - len(wrong)} of {len(expected)} files as expected")
    return 1 if wrong else 0


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    sys.exit({"make": make, "compare": compare}[command](*arguments))
