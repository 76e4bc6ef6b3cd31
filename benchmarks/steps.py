"""Optimizer steps beside torch's own and beside what the hardware allows.

    python benchmarks/steps.py [--device cpu|cuda] [--threads N] [--out FILE.json]

Every case is timed in turns with torch.optim.AdamW(fused=True) and, where the rule is spectral,
torch.optim.Muon, on the same parameters and gradients; a figure is the median of the rounds.

ratio_to_...: the other's time over ours, so more than 1 means that ours is faster.
share_of_floor: the floor over our time. The floor is the larger of two times: the step's least
    traffic (every tensor read and written once) at the speed of a copy, and its fewest operations
    (symmetric products half computed) at the speed of a product of 2048x2048 matrices in the
    fastest type, both measured in the same run.
share_outside_kernels: the time of as many parameters of one element over ours.

On a GPU also milliseconds; times of a CPU that others share mean nothing but as ratios.
"""

import argparse
import json
import platform
import statistics
import sys
from datetime import date
from pathlib import Path

import erlangen
import torch
from torch.utils.benchmark import Timer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import models  # noqa: E402

FP32, BF16 = torch.float32, torch.bfloat16
ROUNDS = 5
POLAR_BYTES = 20  # gradient, momentum and parameter; the iteration's own traffic is not counted

# name: (options of the group, shapes, dtype, least bytes an element)
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
    "column_norm 32768x1024": ({"rule": "column_norm"}, [(32768, 1024)], FP32, 28),
    "row_norm 4 x 2880x5760 bf16, interleaved pairs": (
        {"rule": "row_norm", "layout": [{"transpose": True}, {"pairs": "interleaved", "dim": -2}]},
        [(4, 2880, 5760)],
        BF16,
        18,
    ),
    "spectral 8 x 1024x1024": ({"rule": "spectral"}, [(1024, 1024)] * 8, FP32, POLAR_BYTES),
    "spectral 8 x 1024x4096": ({"rule": "spectral"}, [(1024, 4096)] * 8, FP32, POLAR_BYTES),
    "spectral 120 x 128x512": ({"rule": "spectral"}, [(128, 512)] * 120, FP32, POLAR_BYTES),
    "spectral 128 x 64x1024": ({"rule": "spectral"}, [(64, 1024)] * 128, FP32, POLAR_BYTES),
    "right_spectral 32768x1024": (
        {"rule": "right_spectral"},
        [(32768, 1024)],
        FP32,
        POLAR_BYTES,
    ),
    "adamw 400 x 1024": ({"rule": "adamw"}, [(1024,)] * 400, FP32, 28),
}
LARGE = {"spectral 4096x4096": (4096, 4096), "spectral 4096x11008": (4096, 11008)}  # GPUs only


def milliseconds(function, min_run_time=0.2) -> float:
    timer = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=min_run_time).median * 1e3


def in_turns(functions: dict) -> dict[str, float]:
    for function in functions.values():
        function()  # state comes into being at the first step
    rounds = [{n: milliseconds(f) for n, f in functions.items()} for _ in range(ROUNDS)]
    return {name: statistics.median(r[name] for r in rounds) for name in functions}


def parameters(shapes, dtype, device) -> list[torch.Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    result = []
    for shape in shapes:
        p = torch.randn(shape, dtype=dtype, device=device, generator=generator).requires_grad_()
        p.grad = torch.randn(shape, dtype=dtype, device=device, generator=generator)
        result.append(p)
    return result


def polar_operations(rule: str, m: int, n: int) -> int:
    """Of five steps on an m×n matrix, by the cheaper form; a symmetric product costs half."""
    k, other = (n, m) if rule == "right_spectral" or (rule == "spectral" and m > n) else (m, n)
    standard = 5 * (3 * k * k * other + k**3)
    # Restarts at steps 0, 2 and 4; five Z, two Q, and R twice.
    gram = 3 * 3 * k * k * other + (5 + 2 + 2 * 2) * k**3
    return gram if rule == "right_spectral" else min(standard, gram)


def run(options, shapes, dtype, bytes_per_element, device, speeds) -> dict:
    params = parameters(shapes, dtype, device)
    rule = options["rule"]
    functions = {
        "ours": erlangen.Equivariant([{"params": params, **options}]).step,
        "adamw_fused": torch.optim.AdamW(params, fused=True).step,
    }
    if rule == "spectral":
        functions["torch_muon"] = torch.optim.Muon(params).step
    if len(shapes) >= 100:
        empty = parameters([(1,) * len(shape) for shape in shapes], dtype, device)
        functions["empty"] = erlangen.Equivariant([{"params": empty, **options}]).step
    times = in_turns(functions)
    bytes_moved = sum(p.numel() for p in params) * bytes_per_element
    operations = 0
    if rule.endswith("spectral"):
        operations = sum(polar_operations(rule, *shape[-2:]) for shape in shapes)
    floor = max(bytes_moved / speeds["bytes"], operations / speeds["operations"]) * 1e3
    return figures(times, device) | {"share_of_floor": round(floor / times["ours"], 3)}


def figures(times: dict, device: str) -> dict:
    ours = times["ours"]
    result = {
        f"ratio_to_{name}": round(time / ours, 3)
        for name, time in times.items()
        if name not in ("ours", "empty")
    }
    if "empty" in times:
        result["share_outside_kernels"] = round(times["empty"] / ours, 3)
    return result | ({"milliseconds": round(ours, 4)} if device == "cuda" else {})


def run_model(device: str) -> dict:
    """A Qwen3 of 24 narrow layers: 168 matrices, 97 gains, embedding and head."""
    model = models.build_model("qwen3", vocab_size=8192, hidden_size=256, num_hidden_layers=24)
    model.to(device)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    matrices = list(models.hidden_matrices(model).values())
    chosen = set(map(id, matrices))
    rest = [p for p in model.parameters() if id(p) not in chosen]
    muon, adamw = torch.optim.Muon(matrices), torch.optim.AdamW(rest, fused=True)
    times = in_turns(
        {
            "ours": erlangen.Equivariant(model).step,
            "torch_muon_and_adamw_fused": lambda: (muon.step(), adamw.step()),
            "adamw_fused": torch.optim.AdamW(model.parameters(), fused=True).step,
        }
    )
    return figures(times, device)


def hardware(device: str) -> dict:
    """Bytes per second, read and written, of a copy of 512 MiB; operations per second."""
    source = torch.empty(1 << 27, device=device)
    target = torch.empty_like(source)
    copy = milliseconds(lambda: target.copy_(source), 1.0)
    rates = []
    for dtype in (FP32, BF16, torch.float16) if device == "cuda" else (FP32, BF16):
        a, b, out = torch.randn(3, 2048, 2048, device=device).to(dtype).unbind()
        product = milliseconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), 1.0)
        rates.append(2 * 2048**3 / product * 1e3)
    return {"bytes": 2 * source.numel() * 4 / copy * 1e3, "operations": max(rates)}


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--out", help="where the results go, as JSON")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    cuda = args.device == "cuda"
    speeds = hardware(args.device)
    report = {
        "command": "python " + " ".join(sys.argv),
        "date": date.today().isoformat(),
        "machine": torch.cuda.get_device_name() if cuda else processor(),
        "threads": torch.get_num_threads(),
        "versions": {"erlangen": erlangen.__version__, "torch": torch.__version__},
        "results": {},
    }
    if cuda:
        report["copy_GB_per_s"] = round(speeds["bytes"] / 1e9)
        report["products_TFLOP_per_s"] = round(speeds["operations"] / 1e12)
    cases = dict(CASES)
    if cuda:
        for name, shape in LARGE.items():
            cases[name] = ({"rule": "spectral"}, [shape], BF16, 14)
    for name, case in cases.items():
        report["results"][name] = run(*case, args.device, speeds)
        print(name, report["results"][name], flush=True)
    report["results"]["Qwen3, 24 layers of 256"] = run_model(args.device)
    print("Qwen3, 24 layers of 256", report["results"]["Qwen3, 24 layers of 256"], flush=True)
    if args.out:
        Path(args.out).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
