#!/usr/bin/env python3
"""Random predictions and targets, whose metrics by mlomae are held against those of the libraries that define them.

usage: metrics.py make FOLDER
       metrics.py compare FOLDER [--torchmetrics]

`make` writes FOLDER/sets.json. The example `metrics` of mlomae-model makes FOLDER/results.json of it. `compare` computes
all anew: accuracy, average precision, errors and intersection over union by scikit-learn, average precision of detections
by pycocotools, intervals by numpy on the same resamples. With --torchmetrics also intersection over union by torchmetrics.
"""

import contextlib
import io
import json
import pathlib
import sys

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn import metrics

NUM_SETS = 200
TOLERANCE = 1e-6
UNKNOWN = -1


def single(values):
    """Values that are exact in float32, rounded so that some are equal."""
    return np.asarray(np.round(values, 2), np.float32).astype(float)


def accuracy_set(rng):
    num, images = int(rng.integers(2, 12)), int(rng.integers(1, 40))
    # No equals: libraries differ in which of them is the first.
    scores = np.asarray(rng.normal(size=(images, num)), np.float32).astype(float)
    classes = np.where(rng.random(images) < 0.2, UNKNOWN, rng.integers(0, num, images))
    return {"num": num, "predictions": scores.tolist(), "targets": classes[:, None].tolist()}


def average_precision_set(rng):
    num, images = int(rng.integers(1, 6)), int(rng.integers(2, 50))
    labels = (rng.random((images, num)) < rng.random(num)).astype(int)
    scores = single(labels * rng.random() * 2 + rng.normal(size=(images, num)))
    labels[rng.random(labels.shape) < 0.15] = UNKNOWN
    return {"num": num, "predictions": scores.tolist(), "targets": labels.tolist()}


def regression_set(rng):
    num, images = int(rng.integers(1, 5)), int(rng.integers(3, 40))
    targets = single(rng.normal(size=(images, num)) * 10 + rng.normal() * 100)
    predictions = single(targets + rng.normal(size=targets.shape) * rng.random() * 10)
    unknown = rng.random(targets.shape) < 0.1
    rows = [[None if u else v for v, u in zip(*row)] for row in zip(targets.tolist(), unknown)]
    return {"num": num, "predictions": predictions.tolist(), "targets": rows}


def iou_set(rng):
    num, images, side = int(rng.integers(2, 9)), int(rng.integers(1, 8)), int(rng.integers(2, 9))
    shape = (images, side * side)
    targets = rng.integers(0, int(rng.integers(1, num + 1)), shape)
    found = np.where(rng.random(shape) < 0.5, targets, rng.integers(0, num, shape))
    targets[rng.random(shape) < 0.2] = UNKNOWN
    return {"num": num, "side": side, "predictions": found.tolist(), "targets": targets.tolist()}


def detection_set(rng):
    num, images = int(rng.integers(1, 5)), int(rng.integers(1, 12))
    crowded = rng.random() < 0.05  # more than count
    predictions, targets = [], []
    for _ in range(images):
        objects, found = [], []
        for _ in range(rng.integers(0, 8)):
            # Quarters of pixels, so that overlaps meet thresholds; and sizes on the borders of small and large.
            size = np.array([32, 32]) if rng.random() < 0.1 else np.array([96, 96]) if rng.random() < 0.1 else (
                rng.integers(8, 4 * 2 ** rng.integers(4, 8), 2) / 4)
            corner = rng.integers(0, 800, 2) / 4
            edges = [*corner, *(corner + size)]
            area = size.prod() * (1 if rng.random() < 0.5 else rng.random())
            objects.append({
                "edges": edges, "class": int(rng.integers(num)), "ignored": bool(rng.random() < 0.15),
                "area": float(np.float32(area))})
        for target in objects:
            for _ in range(rng.integers(0, 60 if crowded else 4)):
                moved = np.array(target["edges"]) + rng.integers(-12, 13, 4) * rng.random() // 1 / 4
                moved[2:] = np.maximum(moved[2:], moved[:2] + 0.25)
                wrong = rng.random() < 0.1
                found.append({
                    "edges": moved.tolist(), "class": int(rng.integers(num)) if wrong else target["class"],
                    "score": float(single(rng.random()))})
        for _ in range(rng.integers(0, 4)):
            corner, size = rng.integers(0, 800, 2) / 4, rng.integers(8, 500, 2) / 4
            found.append({
                "edges": [*corner, *(corner + size)], "class": int(rng.integers(num)), "score": float(single(rng.random()))})
        targets.append(objects)
        predictions.append(found)
    return {"num": num, "predictions": predictions, "targets": targets}


SETS = {
    "accuracy": accuracy_set, "average precision": average_precision_set, "regression": regression_set, "iou": iou_set,
    "detection": detection_set}


def accuracy(one):
    scores, classes = np.array(one["predictions"]), np.array(one["targets"])[:, 0]
    known = classes >= 0
    scores, classes = scores[known], classes[known]
    if not len(classes):
        return {}
    result = {"accuracy": metrics.accuracy_score(classes, scores.argmax(1))}
    if one["num"] > 5:
        result["top5_accuracy"] = metrics.top_k_accuracy_score(classes, scores, k=5, labels=np.arange(one["num"]))
    return result


def average_precision(one):
    scores, labels = np.array(one["predictions"]), np.array(one["targets"])
    values = []
    for score, label in zip(scores.T, labels.T):
        known = label >= 0
        if (label == 1).any():
            values.append(metrics.average_precision_score(label[known], score[known]))
    return {"mean_average_precision": np.mean(values)} if values else {}


def regression(one):
    targets = np.array(one["targets"], float)
    values = {"r2": [], "mae": [], "rmse": []}
    for found, target in zip(np.array(one["predictions"]).T, targets.T):
        known = ~np.isnan(target)
        found, target = found[known], target[known]
        if len(target):
            values["mae"].append(metrics.mean_absolute_error(target, found))
            values["rmse"].append(metrics.root_mean_squared_error(target, found))
        if len(np.unique(target)) > 1:
            values["r2"].append(metrics.r2_score(target, found))
    return {name: np.mean(v) for name, v in values.items() if v}


def jaccard(targets, found):
    """Of the classes that either has."""
    return metrics.jaccard_score(targets, found, average=None, labels=np.union1d(targets, found))


def iou(one):
    found, targets = np.array(one["predictions"]), np.array(one["targets"])
    known = targets >= 0
    if not known.any():
        return {}
    images = [jaccard(t[k], f[k]) for f, t, k in zip(found, targets, known) if k.any()]
    return {
        "mean_iou": jaccard(targets[known], found[known]).mean(), "image_mean_iou": np.concatenate(images).mean(),
        "pixel_accuracy": metrics.accuracy_score(targets[known], found[known])}


def iou_by_torchmetrics(one):
    import torch
    from torchmetrics import JaccardIndex
    from torchmetrics.segmentation import MeanIoU

    found, targets = torch.tensor(one["predictions"]), torch.tensor(one["targets"])
    known = targets >= 0
    if not known.any():
        return {}
    num = one["num"]
    index = JaccardIndex("multiclass", num_classes=num, ignore_index=UNKNOWN, average="macro") if num > 1 else None
    one_hot = lambda maps: torch.moveaxis(torch.nn.functional.one_hot(maps.clamp(min=0), num).bool() & known[..., None], 2, 1)
    mean = MeanIoU(num_classes=num)
    mean.update(one_hot(found), one_hot(targets))
    return {"mean_iou": index(found, targets).item(), "image_mean_iou": mean.compute().item()}


def coco(images, categories, annotations):
    one = COCO()
    one.dataset = {
        "images": [{"id": i + 1} for i in range(images)], "categories": [{"id": k} for k in range(categories)],
        "annotations": annotations}
    one.createIndex()
    return one


def annotation(number, image, box):
    left, top, right, bottom = box["edges"]
    bbox = [left, top, right - left, bottom - top]
    return {
        "id": number, "image_id": image + 1, "category_id": box["class"], "bbox": bbox, "iscrowd": int(box.get("ignored", False)),
        "area": box.get("area", bbox[2] * bbox[3]), "score": box.get("score")}


def detection(one):
    def annotations(images):
        boxes = ((image, box) for image, boxes in enumerate(images) for box in boxes)
        return [annotation(number + 1, image, box) for number, (image, box) in enumerate(boxes)]

    size = len(one["targets"]), one["num"]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            coco(*size, annotations(one["targets"])), coco(*size, annotations(one["predictions"])), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., -1]  # [thresholds, recalls, classes, areas]
    parts = {
        "ap": precision[..., 0], "ap50": precision[0, ..., 0], "ap75": precision[5, ..., 0], "ap_small": precision[..., 1],
        "ap_medium": precision[..., 2], "ap_large": precision[..., 3]}
    return {name: part[part > -1].mean() for name, part in parts.items() if (part > -1).any()}


LIBRARIES = {
    "accuracy": accuracy, "average precision": average_precision, "regression": regression, "iou": iou, "detection": detection}
# Resamples of the sets whose intervals are compared; pycocotools is slow.
NUM_RESAMPLES = {"detection": 100}
LEVEL = 0.95


def make(folder):
    folder.mkdir(parents=True, exist_ok=True)
    sets = []
    for kind, draw in SETS.items():
        drawn = [{"kind": kind, **draw(np.random.default_rng([number, len(sets)]))} for number in range(NUM_SETS)]
        largest = max(drawn, key=lambda one: len(one["targets"]))
        largest |= {"num_resamples": NUM_RESAMPLES.get(kind, 1000), "level": LEVEL}
        sets += drawn
    (folder / "sets.json").write_text(json.dumps(sets))
    print(f"{len(sets)} sets made")


def same(found, expected, what):
    assert set(found) == set(expected), f"{what}: {sorted(found)}, not {sorted(expected)}"
    for name, value in expected.items():
        difference = np.max(np.abs(np.asarray(found[name]) - value))
        assert difference <= TOLERANCE * max(1, np.max(np.abs(value))), f"{what}, {name}: {found[name]}, not {value}"


def check_intervals(one, result):
    library = LIBRARIES[one["kind"]]
    values = {}
    for times in result["times"]:
        assert sum(times) == len(one["targets"])
        drawn = {key: [row for row, n in zip(one[key], times) for _ in range(n)] for key in ("predictions", "targets")}
        for name, value in library({**one, **drawn}).items():
            values.setdefault(name, []).append(value)
    tail = 100 * (1 - one["level"]) / 2
    expected = {name: np.percentile(values[name], [tail, 100 - tail]) for name in result["metrics"]}
    same(result["intervals"], expected, f"intervals of {one['kind']}")


def check_images(one, result):
    """Numbers of each image are the metrics of that image alone."""
    for name, values in result["per_image"].items():
        for image, value in enumerate(values):
            alone = LIBRARIES[one["kind"]]({**one, **{key: one[key][image:image + 1] for key in ("predictions", "targets")}})
            if name == "mse":
                error = np.array(one["predictions"][image]) - np.array(one["targets"][image], float)
                known = error[~np.isnan(error)]
                alone = {"mse": np.mean(known**2)} if len(known) else {}
            assert (value is None) == (name not in alone), f"{name} of image {image}: {value}"
            if value is not None:
                same({name: value}, {name: alone[name]}, f"image {image}")


def compare(folder, with_torchmetrics):
    sets = json.loads((folder / "sets.json").read_text())
    results = json.loads((folder / "results.json").read_text())
    assert len(sets) == len(results) == NUM_SETS * len(SETS)
    counts = {}
    for number, (one, result) in enumerate(zip(sets, results)):
        kind = one["kind"]
        expected = LIBRARIES[kind](one)
        same(result["metrics"], expected, f"set {number}, {kind}")
        if kind == "iou" and with_torchmetrics and expected:
            found = {name: result["metrics"][name] for name in ("mean_iou", "image_mean_iou")}
            same(found, iou_by_torchmetrics(one), f"set {number}, torchmetrics")
        check_images(one, result)
        if "level" in one:
            check_intervals(one, result)
        for name in expected:
            counts[name] = counts.get(name, 0) + 1
    print(", ".join(f"{name} {count}" for name, count in counts.items()))
    print(f"metrics of {len(sets)} sets are those of the libraries")


def main():
    what, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    if what == "make":
        make(folder)
    elif what == "compare":
        compare(folder, "--torchmetrics" in sys.argv[3:])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
