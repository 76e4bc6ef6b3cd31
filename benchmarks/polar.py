"""X·Xᵀ and the polar factor without a step, beside each peer's.

    python benchmarks/polar.py [--device cpu|cuda] [--threads N] [--out FILE.json]

harness.py says what the figures mean. On a GPU products are timed in CUDA graphs, as what they are
in an iteration that is queued ahead: a launch from Python takes longer than a small product.
"""

import functools

import erlangen.functional as F
import harness
import torch
from erlangen import _C
from harness import BF16, FP16

SIZES = (256, 512, 1024, 2048, 4096, 8192)
GPU_SHAPES = [(4096, 4096), (4096, 11008), (64, 768, 2048), (128, 64, 1024)]
CPU_SHAPES = [(1024, 1024), (1024, 4096), (8, 768, 2048), (128, 64, 1024)]
CALLS = 20  # in a graph


def gram(n: int, dtype: torch.dtype, settings, peers) -> dict:
    (n,) = settings.shrink(n)
    x = torch.randn(n, n, device=settings.device).to(dtype)
    products = {"ours": _C.symmetric_product} | {
        name: peer.gram for name, peer in peers.items() if peer.gram
    }

    def queued(product):
        one = functools.partial(product, x)
        return harness.captured(one, CALLS) if settings.cuda else one

    functions = {
        name: harness.Made(lambda product=product: queued(product))
        for name, product in products.items()
    }
    calls = CALLS if settings.cuda else 1
    bytes_moved = 2 * n * n * x.element_size()
    result = settings.compare(functions, calls * bytes_moved, calls * n**3)
    return {
        key: harness.rounded(value / calls) if key.startswith("milliseconds") else value
        for key, value in result.items()
    }


def polar(shape: tuple[int, ...], settings, peers) -> dict:
    *batch, m, n = shape
    x = torch.randn(*batch, *settings.shrink(m, n), device=settings.device)
    functions = {"ours": lambda: F.spectral(x)} | {
        name: lambda polar=peer.polar: polar(x) for name, peer in peers.items() if peer.polar
    }
    count, (m, n) = x[..., 0, 0].numel(), x.shape[-2:]
    bytes_moved = 2 * x.numel() * x.element_size()
    return settings.compare(functions, bytes_moved, count * harness.polar_operations("", m, n))


def right_spectral(shape: tuple[int, int], settings, peers) -> dict:
    x = torch.randn(settings.shrink(*shape), device=settings.device)
    operations = harness.polar_operations("right_spectral", *x.shape)
    functions = {"ours": lambda: F.right_spectral(x)}
    return settings.compare(functions, 2 * x.numel() * x.element_size(), operations)


def main(argv=None) -> dict:
    args = harness.parser(__doc__).parse_args(argv)
    cuda = args.device == "cuda"
    cases = {}
    for dtype in (BF16, FP16) if cuda else (BF16,):
        for n in SIZES if cuda else SIZES[:3]:
            name = f"gram {n}x{n} {str(dtype).removeprefix('torch.')}"
            cases[name] = lambda s, p, n=n, dtype=dtype: gram(n, dtype, s, p)
    for shape in GPU_SHAPES if cuda else CPU_SHAPES:
        name = "polar " + " x ".join([*map(str, shape[:-2]), f"{shape[-2]}x{shape[-1]}"])
        cases[name] = lambda s, p, shape=shape: polar(shape, s, p)
    tall = (151936 if cuda else 32768, 1024)
    cases[f"right_spectral {tall[0]}x{tall[1]}"] = lambda s, p: right_spectral(tall, s, p)
    return harness.run(args, cases)


if __name__ == "__main__":
    main()
