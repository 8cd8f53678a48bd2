#!/usr/bin/env python3
"""Losses of the downstream tasks with their gradients, by PyTorch in float64: tests/fixtures/tasks/losses.json.

    python3 tests/python/task_losses.py tests/fixtures/tasks/losses.json

Tokens are float32 numbers, parameters float64. A Rust test holds the tasks to these numbers; nothing of mlomae is used
here.
"""

import json
import sys

import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)
IMAGES, DIM, GRID, PATCH, NUM = 3, 7, 3, 4, 3
UNKNOWN = 65535
rng = torch.Generator().manual_seed(5)


def draw(*shape):
    return torch.randn(*shape, generator=rng)


def tokens(per_image):
    return draw(IMAGES, per_image, DIM).to(torch.float32).to(torch.float64).requires_grad_()


def norm(z, c, name):
    return F.layer_norm(z, (DIM,), c[f"{name}.weight"], c[f"{name}.bias"], eps=1e-6)


def parameters(name, outputs):
    c = {f"{name}.weight": 1 + 0.3 * draw(DIM), f"{name}.bias": 0.3 * draw(DIM)}
    c |= {"head.weight": 0.5 * draw(outputs, DIM), "head.bias": 0.2 * draw(outputs)}
    return {key: value.requires_grad_() for key, value in c.items()}


def outputs_of(z, c, name):
    return F.linear(norm(z, c, name), c["head.weight"], c["head.bias"])


def pooled(loss):
    c, z = parameters("fc_norm", NUM), tokens(1)
    outputs = outputs_of(z[:, 0], c, "fc_norm")
    return c, z, outputs, *loss(outputs)


def class_():
    y = torch.tensor([2, 0, 2])
    loss = lambda o: (F.cross_entropy(o, y), [(o.argmax(1) == y).double().mean()])
    c, z, o, loss, figures = pooled(loss)
    return {"kind": "class"}, {"classes": y.tolist()}, c, z, o, loss, figures


def multi_label():
    y = torch.tensor([[1, 0, -1], [0, -1, -1], [1, 1, 0]])
    known = y >= 0

    def loss(o):
        right = ((o > 0) == (y == 1))[known].double().mean()
        return F.binary_cross_entropy_with_logits(o[known], y[known].double()), [right]

    c, z, o, loss, figures = pooled(loss)
    return {"kind": "multi-label"}, {"labels": y.flatten().tolist()}, c, z, o, loss, figures


def regression(name, error):
    mean, sd = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.5, 2.0, 1.25])
    y = (mean + 2 * sd * draw(IMAGES, NUM)).to(torch.float32).to(torch.float64)
    y[1, 2] = float("nan")
    known = ~y.isnan()
    scaled = (y - mean) / sd

    def loss(o):
        return error(o[known], scaled[known]), [(o - scaled)[known].abs().mean()]

    c, z, o, loss, figures = pooled(loss)
    spec = {"kind": "regression", "loss": name, "mean": mean.tolist(), "sd": sd.tolist()}
    values = [None if v != v else v for v in y.flatten().tolist()]
    return spec, {"values": values}, c, z, o * sd + mean, loss, figures


def segmentation(head):
    side = GRID * PATCH
    y = torch.randint(NUM + 1, (IMAGES, side, side), generator=rng)
    y[y == NUM] = UNKNOWN
    known = y != UNKNOWN
    c, z = parameters("norm", NUM if head == "linear" else NUM * PATCH * PATCH), tokens(GRID * GRID)
    o = outputs_of(z, c, "norm")
    if head == "linear":
        o = o.reshape(IMAGES, GRID, GRID, NUM).permute(0, 3, 1, 2)
        o = F.interpolate(o, scale_factor=PATCH, mode="bilinear", align_corners=False)
    else:
        o = o.reshape(IMAGES, GRID, GRID, PATCH, PATCH, NUM).permute(0, 5, 1, 3, 2, 4)
        o = o.reshape(IMAGES, NUM, side, side)
    loss = F.cross_entropy(o, y, ignore_index=UNKNOWN)
    figures = [(o.argmax(1) == y)[known].double().mean()]
    return {"kind": "segmentation", "head": head}, {"map": y.flatten().tolist()}, c, z, o.argmax(1), loss, figures


def case(spec, targets, c, z, outputs, loss, figures):
    gradients = torch.autograd.grad(loss, [*c.values(), z])
    flat = lambda t: t.detach().flatten().tolist()
    return {
        "spec": spec,
        "targets": targets,
        "tokens": flat(z),
        "c": {name: flat(value) for name, value in c.items()},
        "loss": float(loss),
        "figures": [float(figure) for figure in figures],
        "dc": {name: flat(gradient) for name, gradient in zip(c, gradients)},
        "dz": flat(gradients[-1]),
        "outputs": flat(outputs),
    }


def main():
    cases = [
        class_(),
        multi_label(),
        regression("smooth-l1", F.smooth_l1_loss),
        regression("mse", F.mse_loss),
        segmentation("linear"),
        segmentation("patch"),
    ]
    facts = {"images": IMAGES, "dim": DIM, "grid": GRID, "patch": PATCH, "num": NUM}
    with open(sys.argv[1], "w") as file:
        json.dump({"facts": facts, "cases": [case(*of) for of in cases]}, file, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
