"""One outer iteration of MLO-MAE (arXiv 2402.18128) in plain PyTorch: the peer that `mlomae bench --peer PYTHON` runs.

The published passes: two steps of level 1 (masked autoencoder, weighted by learned scores), one of level 2 (linear head on the
CLS token, encoder frozen), one of level 3 (central differences along mask -> finetune -> pretrain -> mask and along
mask -> pretrain -> mask, one after the other), with fused attention and fused AdamW, without a framework around them.

With --savings the strict peer: the same mathematics with every saving that is exact. Both labelled batches share one pass of
the encoder and one backward pass with both cotangents; the head's differences need no encoder; both paths of level 3 are one
difference along the sum of their directions; its shifted passes are forward only, as the losses do not depend on the policy.

  torch_loop.py --preset tiny|small|base [--batch N] [--random] [--rounds N] [--json FILE]      prints JSON lines
      --device cpu|cuda  --precision f32|tf32|bf16  --compile  --savings  --threads N
  torch_loop.py --serve ...    does one iteration for each line `step` on stdin, until `end`; `rest` gives memory that is not
                               in use back to the device; answers are JSON lines
  torch_loop.py --check        holds the savings against the published passes at a small shape; exit code 1 if they differ

tf32 is a precision of CUDA; bf16 is autocast, weights and moments stay f32. Needs torch; `pip install torch`.
"""

import argparse
import contextlib
import json
import platform
import resource
import statistics
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

# patch, (width, depth, heads) of encoder and decoder, hidden units of the masking network, batch
PRESETS = {
    "tiny": (4, (96, 4, 3), (64, 2, 2), 128, 64),
    "small": (4, (192, 6, 3), (128, 2, 4), 512, 64),
    "base": (2, (768, 12, 12), (512, 8, 16), 512, 128),
}
SIDE, CHANNELS, CLASSES, MASK_RATIO, ALPHA = 32, 3, 10, 0.75, 0.01
WARM_UP = 2


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.proj(mixed)
        return x + self.mlp(self.norm2(x))


class Autoencoder(nn.Module):
    """Encoder and decoder: the parameters of level 1."""

    def __init__(self, patch, encoder, decoder):
        super().__init__()
        (width, depth, heads), (dec_width, dec_depth, dec_heads) = encoder, decoder
        self.side = patch
        self.num_patches = (SIDE // patch) ** 2
        self.num_visible = int(self.num_patches * (1 - MASK_RATIO))
        self.embed = nn.Conv2d(CHANNELS, width, patch, patch)
        self.cls = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos = nn.Parameter(0.02 * torch.randn(1, 1 + self.num_patches, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, 1e-6)
        self.narrow = nn.Linear(width, dec_width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, dec_width))
        self.dec_pos = nn.Parameter(0.02 * torch.randn(1, 1 + self.num_patches, dec_width))
        self.dec_blocks = nn.Sequential(*(Block(dec_width, dec_heads) for _ in range(dec_depth)))
        self.dec_norm = nn.LayerNorm(dec_width, 1e-6)
        self.pixels = nn.Linear(dec_width, CHANNELS * patch * patch)

    def embedding(self, images):
        return self.embed(images).flatten(2).transpose(1, 2) + self.pos[:, 1:]

    def encode(self, tokens):
        first = (self.cls + self.pos[:, :1]).expand(len(tokens), -1, -1)
        return self.norm(self.blocks(torch.cat((first, tokens), 1)))

    def features(self, images):
        return self.encode(self.embedding(images))[:, 0]

    def patch_losses(self, images, embedding, scores):
        """Squared errors of the normalised patches [batch, patches], and which of them are masked: the highest scores."""
        order = scores.argsort(1)
        rank = order.argsort(1)
        visible = order[:, : self.num_visible, None].expand(-1, -1, embedding.shape[2])
        z = self.narrow(self.encode(embedding.gather(1, visible)))
        hidden = self.mask_token.expand(len(images), self.num_patches - self.num_visible, -1)
        patches = torch.cat((z[:, 1:], hidden), 1).gather(1, rank[..., None].expand(-1, -1, z.shape[2]))
        y = torch.cat((z[:, :1], patches), 1) + self.dec_pos
        pred = self.pixels(self.dec_norm(self.dec_blocks(y)))[:, 1:]
        target = F.unfold(images, self.side, stride=self.side).transpose(1, 2)
        var, mean = torch.var_mean(target, -1, keepdim=True)
        return F.mse_loss(pred, (target - mean) * (var + 1e-6).rsqrt(), reduction="none").mean(-1), (
            rank >= self.num_visible
        ).float()


class MaskNet(nn.Module):
    """Scores of all patches from their embeddings: the parameters of level 3."""

    def __init__(self, num_values, hidden, num_patches):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(num_values, hidden), nn.ReLU(), nn.Linear(hidden, num_patches), nn.Sigmoid()
        )

    def forward(self, embedding):
        return self.layers(embedding)


def gradients(loss, params, **options):
    found = torch.autograd.grad(loss, params, allow_unused=True, **options)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(params, found)]


def step_size(direction, alpha):
    return alpha / (torch.linalg.vector_norm(torch.stack(torch._foreach_norm(direction))) + 1e-15)


def difference(moved, direction, loss, of, alpha):
    """-d/dε of the gradient of `loss` for `of` where `moved` goes along `direction`, by a central difference."""
    size = step_size(direction, alpha).item()

    def shift(by):
        with torch.no_grad():
            torch._foreach_add_(moved, direction, alpha=by * size)

    shift(1)
    plus = gradients(loss(), of)
    shift(-2)
    minus = gradients(loss(), of)
    shift(1)
    return [(m - p) / (2 * size) for m, p in zip(minus, plus)]


def both_ends(moved, direction, size):
    """Yields 1, then -1, while `moved` is that many steps along `direction`; never waits for the device."""
    saved = [param.clone() for param in moved]
    for side in (1, -1):
        with torch.no_grad():
            torch._foreach_copy_(moved, saved)
            torch._foreach_add_(moved, torch._foreach_mul(direction, side * size))
        yield side
    with torch.no_grad():
        torch._foreach_copy_(moved, saved)


class Loop:
    """Networks, optimizers and batches, and an outer iteration over them."""

    def __init__(self, args):
        patch, encoder, decoder, hidden, batch = PRESETS[args.preset]
        self.batch, self.random, self.savings = args.batch or batch, args.random, args.savings
        self.device, self.dtype, self.alpha = torch.device(args.device), torch.float32, ALPHA
        mae = Autoencoder(patch, encoder, decoder)
        masks = MaskNet(mae.num_patches * encoder[0], hidden, mae.num_patches)
        head = nn.Sequential(nn.LayerNorm(encoder[0], 1e-6), nn.Linear(encoder[0], CLASSES))
        self.mae, self.head, self.masks = (module.to(self.device) for module in (mae, head, masks))
        self.params = [list(module.parameters()) for module in (mae, head, masks)]
        self.optimizers = [
            torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
            for params, lr in zip(self.params, (1e-4, 1e-3, 1e-3))
        ]
        self.images = torch.randn(4, self.batch, CHANNELS, SIDE, SIDE).to(self.device)
        self.labels = torch.randint(0, CLASSES, (4, self.batch)).to(self.device)
        bf16 = args.precision == "bf16"
        self.cast = (lambda: torch.autocast(self.device.type, torch.bfloat16)) if bf16 else contextlib.nullcontext
        if args.compile:
            mae.features, mae.patch_losses = torch.compile(mae.features), torch.compile(mae.patch_losses)

    def update(self, level, grads):
        for param, grad in zip(self.params[level], grads):
            param.grad = grad
        self.optimizers[level].step()
        self.optimizers[level].zero_grad()

    def pretrain_loss(self, images):
        with self.cast():
            embedding = self.mae.embedding(images)
            if self.random:
                scores = torch.rand(embedding.shape[:2], device=self.device)
                losses, masked = self.mae.patch_losses(images, embedding, scores)
                return (losses * masked).sum() / masked.sum()
            scores = self.masks(embedding)
            losses, masked = self.mae.patch_losses(images, embedding, scores)
            return (losses * scores * masked).sum() / masked.sum()

    def head_loss(self, features, batch):
        return F.cross_entropy(self.head(features).to(self.dtype), self.labels[batch])

    def task_loss(self, batch):
        with self.cast():
            return self.head_loss(self.mae.features(self.images[batch]), batch)

    def pretrain(self):
        """Both steps of level 1; returns their losses."""
        losses = [self.pretrain_loss(self.images[0])]
        self.update(0, gradients(losses[0], self.params[0]))
        losses.append(self.pretrain_loss(self.images[1]))
        self.update(0, gradients(losses[1], self.params[0]))
        return [loss.detach() for loss in losses]

    def published(self):
        """One iteration by the published passes; returns losses, directions along the weights, and the policy's gradient."""
        (mae, head, masks), (finetune, validation) = self.params, (2, 3)
        losses = self.pretrain()
        losses.append(self.task_loss(finetune))
        self.update(1, gradients(losses[2], head))
        losses.append(self.task_loss(validation))
        v0 = gradients(losses[3], head, retain_graph=True)
        w = gradients(losses[3], mae)
        v1 = difference(head, v0, lambda: self.task_loss(finetune), mae, self.alpha)
        again = lambda: self.pretrain_loss(self.images[1])
        indirect = difference(mae, v1, again, masks, self.alpha)
        direct = difference(mae, w, again, masks, self.alpha)
        gradient = [a + b for a, b in zip(indirect, direct)]
        self.update(2, gradient)
        return losses, (v1, w), gradient

    def saving(self):
        """The same with every saving that is exact."""
        (mae, head, masks), (finetune, validation) = self.params, (2, 3)
        losses = self.pretrain()
        with self.cast():
            features = self.mae.features(self.images[finetune : validation + 1].flatten(0, 1))
        known, unseen = (part.detach().to(self.dtype).requires_grad_() for part in features.chunk(2))
        losses.append(self.head_loss(known, finetune))
        self.update(1, gradients(losses[2], head))
        losses.append(self.head_loss(unseen, validation))
        *v0, w_features = gradients(losses[3], [*head, unseen])
        size = step_size(v0, self.alpha)
        plus, minus = (gradients(self.head_loss(known, finetune), [known])[0] for _ in both_ends(head, v0, size))
        cotangent = torch.cat(((minus - plus) / (2 * size), w_features)).to(features.dtype)
        direction = gradients(features, mae, grad_outputs=cotangent)
        del features
        size = step_size(direction, self.alpha)
        slope = 0
        for side in both_ends(mae, direction, size):
            images = self.images[1]
            with torch.no_grad(), self.cast():
                embedding = self.mae.embedding(images)
            with self.cast():
                scores = self.masks(embedding)
            with torch.no_grad(), self.cast():
                errors, masked = self.mae.patch_losses(images, embedding, scores.detach())
            slope = slope - side * (scores * (errors * masked).to(self.dtype)).sum() / masked.sum() / (2 * size)
        gradient = gradients(slope, masks)
        self.update(2, gradient)
        return losses, (direction,), gradient

    def outer_iteration(self):
        if self.random:
            return self.pretrain()
        return self.saving() if self.savings else self.published()

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(self):
        self.wait()
        begin = time.perf_counter()
        self.outer_iteration()
        self.wait()
        return 1e3 * (time.perf_counter() - begin)

    def to_f64(self):
        """For the check alone: everything in f64, and steps so short that no sign of a ReLU changes along them."""
        for module in (self.mae, self.head, self.masks):
            module.double()
        self.images, self.dtype, self.alpha = self.images.double(), torch.float64, 1e-4


def relative_error(found, expected):
    distance, norm = (
        torch.sqrt(sum((x.double() ** 2).sum() for x in xs)).item()
        for xs in ([f - e for f, e in zip(found, expected)], expected)
    )
    return distance / norm


# Largest relative errors in f64 and f32. The policy's gradient is a difference: its rounding errors are divided by the step,
# so in f32 it has no limit, and one along a sum equals the sum of two up to the step's square. The first steps of AdamW go by
# the signs of gradients, however small, so weights differ by more than what they come from.
LIMITS = {"losses": (1e-9, 1e-4), "direction": (1e-8, 1e-3), "gradient": (1e-6, None), "weights": (1e-6, 1e-2)}


def check(args):
    """Whether the savings are exact, over two iterations from the same beginning."""
    ok = True
    for place, kind in enumerate(("f64", "f32")):
        loops = []
        for savings in (False, True):
            torch.manual_seed(0)
            args.savings = savings
            loop = Loop(args)
            if kind == "f64":
                loop.to_f64()
            loops.append(loop)
        for iteration in (1, 2):
            (losses, (v1, w), gradient), (our_losses, (direction,), our_gradient) = (l.outer_iteration() for l in loops)
            pairs = {
                "losses": (our_losses, losses),
                "direction": (direction, [a + b for a, b in zip(v1, w)]),
                "gradient": (our_gradient, gradient),
                "weights": tuple([p.detach() for params in loop.params for p in params] for loop in reversed(loops)),
            }
            for name, (found, expected) in pairs.items():
                error, limit = relative_error(found, expected), LIMITS[name][place]
                good = limit is None or error <= limit
                say(check=name, kind=kind, iteration=iteration, relative_error=error, limit=limit, ok=good)
                ok = ok and good
    return ok


def say(**values):
    print(json.dumps(values), flush=True)


def facts(args):
    """What is measured, and on what."""
    cuda = args.device == "cuda"
    passes = "random masks" if args.random else "exact savings" if args.savings else "published passes"
    what = [f"PyTorch {torch.__version__}"]
    what += [torch.cuda.get_device_name(), args.precision] if cuda else [f"{args.threads} threads"]
    what += ["bf16"] if args.precision == "bf16" and not cuda else []
    return {
        "about": ", ".join(what + [passes] + ["compiled"] * args.compile),
        "device": args.device,
        "device_name": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "device_bytes": torch.cuda.get_device_properties(0).total_memory if cuda else None,
        "precision": args.precision,
        "compile": args.compile,
        "savings": args.savings,
        "random": args.random,
        "preset": args.preset,
        "num_threads": args.threads,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "python": platform.python_version(),
    }


def memory(args):
    """Peaks: of tensors on the device if that has its own memory, else of the process."""
    if args.device == "cuda":
        return {"peak_bytes": torch.cuda.max_memory_allocated(), "reserved_bytes": torch.cuda.max_memory_reserved()}
    return {"peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def serve(loop, args):
    say(**facts(args), batch=loop.batch)
    for line in sys.stdin:
        word = line.strip()
        if word == "end":
            break
        if word == "rest":
            if args.device == "cuda":
                torch.cuda.empty_cache()
            say(rests=True)
        else:
            say(ms=loop.timed())
    say(**memory(args))


def measure(loop, args):
    times = [loop.timed() for _ in range(args.rounds + WARM_UP)]
    first_ms, times = times[0], times[WARM_UP:]
    found = {**facts(args), "batch": loop.batch, "num_rounds": args.rounds, "ms_outer": statistics.median(times)}
    found |= {"ms_outer_range": [min(times), max(times)], "ms_first": first_ms}
    found["images_per_s"] = 2e3 * loop.batch / found["ms_outer"]
    found |= memory(args)
    say(**found)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({**found, "ms": times}, file, indent=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("f32", "tf32", "bf16"), default="f32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--savings", action="store_true")
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", metavar="FILE")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--serve", action="store_true")
    mode.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    if args.check and (args.random or args.precision != "f32"):
        parser.error("--check compares the learned masks' iterations in f64 and f32 alone")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    if args.precision == "tf32" and args.device != "cuda":
        parser.error("--precision tf32 needs --device cuda")
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    tf32 = args.precision == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    if args.check:
        args.batch = args.batch or 4
        sys.exit(0 if check(args) else 1)
    (serve if args.serve else measure)(Loop(args), args)


if __name__ == "__main__":
    main()
