"""Optimizer steps beside torch's own, on the same parameters and gradients.

    python benchmarks/steps.py [--device cpu|cuda] [--out benchmarks/results/steps_cuda.json]

Each case is timed in turn with torch.optim.AdamW(fused=True) (and torch.optim.Muon where the rule
is spectral), medians of torch.utils.benchmark. `ratio` is the other's time over ours: more than 1
means that ours is faster. On a GPU also milliseconds, and the bandwidth that the step's least
traffic (`bytes_per_element`: every tensor read and written once) makes of them, beside that of a
copy measured in the same run. On a CPU nothing but ratios is kept.
"""

import argparse
import json
import platform
import sys
from datetime import date

import erlangen
import torch
from torch.utils.benchmark import Timer

FP32, BF16 = torch.float32, torch.bfloat16

# name: (rule options, shapes, dtype, bytes per element or None)
CASES = {
    "row_norm 32768x1024": ({"rule": "row_norm"}, [(32768, 1024)], FP32, 20),
    "row_norm 32768x1024 bf16": ({"rule": "row_norm"}, [(32768, 1024)], BF16, 14),
    "row_norm 151936x1024": ({"rule": "row_norm"}, [(151936, 1024)], FP32, 20),
    "row_norm 400 x 256x256": ({"rule": "row_norm"}, [(256, 256)] * 400, FP32, 20),
    "row_norm centered 32768x1024": (
        {"rule": "row_norm", "center": True},
        [(32768, 1024)],
        FP32,
        28,
    ),
    "column_norm 32768x1024": ({"rule": "column_norm"}, [(32768, 1024)], FP32, 24),
    "row_norm 4 x 2880x5760 bf16, interleaved pairs": (
        {"rule": "row_norm", "layout": [{"transpose": True}, {"pairs": "interleaved", "dim": -2}]},
        [(4, 2880, 5760)],
        BF16,
        18,
    ),
    "spectral 8 x 1024x1024": ({"rule": "spectral"}, [(1024, 1024)] * 8, FP32, None),
    "spectral 120 x 128x512": ({"rule": "spectral"}, [(128, 512)] * 120, FP32, None),
    "spectral 128 x 64x1024": ({"rule": "spectral"}, [(64, 1024)] * 128, FP32, None),
    "adamw 400 x 1024": ({"rule": "adamw"}, [(1024,)] * 400, FP32, None),
}


def milliseconds(function) -> float:
    timer = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
    function()  # state comes into being at the first step
    return timer.blocked_autorange(min_run_time=1.0).median * 1e3


def parameters(shapes, dtype, device) -> list[torch.Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    result = []
    for shape in shapes:
        p = torch.randn(shape, dtype=dtype, device=device, generator=generator).requires_grad_()
        p.grad = torch.randn(shape, dtype=dtype, device=device, generator=generator)
        result.append(p)
    return result


def run(options, shapes, dtype, bytes_per_element, device, copy_bandwidth) -> dict:
    params = parameters(shapes, dtype, device)
    ours = milliseconds(erlangen.Equivariant([{"params": params, **options}]).step)
    adamw = milliseconds(torch.optim.AdamW(params, fused=True).step)
    result = {"ratio_to_adamw_fused": round(adamw / ours, 3)}
    if options["rule"] == "spectral":
        muon = milliseconds(torch.optim.Muon(params).step)
        result["ratio_to_torch_muon"] = round(muon / ours, 3)
    if device == "cuda":
        result["milliseconds"] = round(ours, 4)
        if bytes_per_element:
            elements = sum(p.numel() for p in params)
            bandwidth = elements * bytes_per_element / ours * 1e3
            result["share_of_copy_bandwidth"] = round(bandwidth / copy_bandwidth, 3)
    return result


def copy_bandwidth(device) -> float:
    """Bytes per second, read and written, of a copy of 512 MiB."""
    source = torch.empty(1 << 27, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / milliseconds(lambda: target.copy_(source)) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", help="where the results go, as JSON")
    args = parser.parse_args()
    bandwidth = copy_bandwidth(args.device)
    cuda = args.device == "cuda"
    report = {
        "command": "python " + " ".join(sys.argv),
        "date": date.today().isoformat(),
        "machine": torch.cuda.get_device_name() if cuda else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "versions": {"erlangen": erlangen.__version__, "torch": torch.__version__},
        "results": {},
    }
    if cuda:
        report["copy_bandwidth_GB_per_s"] = round(bandwidth / 1e9)
    for name, case in CASES.items():
        report["results"][name] = run(*case, args.device, bandwidth)
        print(name, report["results"][name], flush=True)
    if args.out:
        with open(args.out, "w") as file:
            json.dump(report, file, indent=2)
            file.write("\n")


if __name__ == "__main__":
    main()
