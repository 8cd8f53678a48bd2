"""One outer iteration of MLO-MAE (arXiv 2402.18128) in plain PyTorch: the peer that `mlomae bench --peer PYTHON` runs.

The published passes: two steps of level 1 (masked autoencoder, weighted by learned scores), one of level 2 (linear head on the
CLS token, encoder frozen), one of level 3 (central differences along mask -> finetune -> pretrain -> mask and along
mask -> pretrain -> mask, one after the other), with fused attention and fused AdamW, without a framework around them.

  torch_loop.py --preset tiny|small|base [--batch N] [--threads N] [--random] [--rounds N]   prints one JSON line
  torch_loop.py --serve ...    does one iteration for each line `step` on stdin, until `end`; answers are JSON lines

Needs torch; `pip install torch`.
"""

import argparse
import json
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


def gradients(loss, module, **options):
    params = list(module.parameters())
    found = torch.autograd.grad(loss, params, allow_unused=True, **options)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(params, found)]


def difference(moved, direction, loss, of):
    """-d/dε of the gradient of `loss` for `of` where `moved` goes along `direction`, by a central difference."""
    params = list(moved.parameters())
    size = ALPHA / (torch.sqrt(sum((d * d).sum() for d in direction)).item() + 1e-15)

    def shift(by):
        with torch.no_grad():
            torch._foreach_add_(params, direction, alpha=by * size)

    shift(1)
    plus = gradients(loss(), of)
    shift(-2)
    minus = gradients(loss(), of)
    shift(1)
    return [(m - p) / (2 * size) for m, p in zip(minus, plus)]


class Loop:
    def __init__(self, args):
        patch, encoder, decoder, hidden, batch = PRESETS[args.preset]
        self.batch, self.random = args.batch or batch, args.random
        self.mae = Autoencoder(patch, encoder, decoder)
        self.masks = MaskNet(self.mae.num_patches * encoder[0], hidden, self.mae.num_patches)
        self.head = nn.Sequential(nn.LayerNorm(encoder[0], 1e-6), nn.Linear(encoder[0], CLASSES))
        rates = ((self.mae, 1e-4), (self.head, 1e-3), (self.masks, 1e-3))
        self.optimizers = [
            torch.optim.AdamW(m.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True) for m, lr in rates
        ]
        self.images = torch.randn(4, self.batch, CHANNELS, SIDE, SIDE)
        self.labels = torch.randint(0, CLASSES, (4, self.batch))

    def update(self, level, module, grads):
        for param, grad in zip(module.parameters(), grads):
            param.grad = grad
        self.optimizers[level].step()
        self.optimizers[level].zero_grad()

    def pretrain_loss(self, images):
        embedding = self.mae.embedding(images)
        if self.random:
            losses, masked = self.mae.patch_losses(images, embedding, torch.rand(embedding.shape[:2]))
            return (losses * masked).sum() / masked.sum()
        scores = self.masks(embedding)
        losses, masked = self.mae.patch_losses(images, embedding, scores)
        return (losses * scores * masked).sum() / masked.sum()

    def task_loss(self, batch):
        return F.cross_entropy(self.head(self.mae.features(self.images[batch])), self.labels[batch])

    def outer_iteration(self):
        for batch in (0, 1):
            self.update(0, self.mae, gradients(self.pretrain_loss(self.images[batch]), self.mae))
        if self.random:
            return
        finetune, validation = 2, 3
        self.update(1, self.head, gradients(self.task_loss(finetune), self.head))
        loss = self.task_loss(validation)
        v0 = gradients(loss, self.head, retain_graph=True)
        w = gradients(loss, self.mae)
        v1 = difference(self.head, v0, lambda: self.task_loss(finetune), self.mae)
        again = lambda: self.pretrain_loss(self.images[1])
        indirect = difference(self.mae, v1, again, self.masks)
        direct = difference(self.mae, w, again, self.masks)
        self.update(2, self.masks, [a + b for a, b in zip(indirect, direct)])

    def timed(self):
        begin = time.perf_counter()
        self.outer_iteration()
        return 1e3 * (time.perf_counter() - begin)


def say(**values):
    print(json.dumps(values), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--serve", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    loop = Loop(args)
    about = f"PyTorch {torch.__version__}, {args.threads} threads, published passes"
    if args.serve:
        say(about=about)
        for line in sys.stdin:
            if line.strip() == "end":
                break
            say(ms=loop.timed())
    else:
        times = [loop.timed() for _ in range(args.rounds + 2)][2:]
        say(about=about, preset=args.preset, batch=loop.batch, random=args.random, ms_outer=statistics.median(times))
    say(peak_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    main()
