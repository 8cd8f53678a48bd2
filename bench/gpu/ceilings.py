"""What the GPU reaches, by PyTorch: products of 8192 x 8192 in each precision on random values, and a copy of 4 GiB.

The yardsticks that results are shares of, measured in the same call as those. Prints one JSON object.
"""

import json

import torch

SIDE, NUM_PRODUCTS = 8192, 20
COPY_BYTES, NUM_COPIES = 1 << 32, 10


def seconds(work, count):
    """Seconds of one of `count` runs, after three that are not measured."""
    for _ in range(3):
        work()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(count):
        work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / count


def tflops(dtype, count):
    a, b = (torch.randn(SIDE, SIDE, device="cuda", dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2e-12 * SIDE**3 / seconds(lambda: torch.matmul(a, b, out=out), count)


def main():
    found = {"device_name": torch.cuda.get_device_name()}
    kinds = (("bf16", torch.bfloat16, 1), ("tf32", torch.float32, 2), ("f32", torch.float32, 4))
    for precision, dtype, divisor in kinds:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        found[f"{precision}_tflops"] = tflops(dtype, NUM_PRODUCTS // divisor)
    source = torch.empty(COPY_BYTES // 4, device="cuda").normal_()
    target = torch.empty_like(source)
    # Read and written.
    found["copy_tb_per_s"] = 2e-12 * COPY_BYTES / seconds(lambda: target.copy_(source), NUM_COPIES)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
