"""What the benchmarks share: timing in turns, the hardware's speeds, floors, and the report.

Times are medians, taken in turns: every round times each candidate once. On a GPU they are in the
report, in milliseconds; those of a CPU that others share mean nothing but as ratios.

ratio_to_NAME: the other's time over ours, so more than 1 means that ours is faster.
share_of_floor: the floor over our time. The floor is the larger of two times: the least traffic
    (every tensor read and written once) at the speed of a copy or of x = -x, whichever is the
    faster (a CPU's copy may read what it will write over), and the fewest operations
    (symmetric products half computed) at the speed of a full product in the fastest type, both
    measured in the same run. `limited_by` says which one it is.
"""

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import NamedTuple

import erlangen
import peers
import torch
from torch.utils.benchmark import Timer

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


class Settings(NamedTuple):
    device: str
    quick: bool  # tiny shapes and short timings, to see that everything runs
    bytes_per_second: float = math.nan  # read and written, of a copy or in place
    operations_per_second: float = math.nan  # two a multiplication, of a full product
    bfloat16_over_float32: float = math.nan  # how much faster such products are

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    def shrink(self, *sizes: int) -> tuple[int, ...]:
        return tuple(max(1, n // 32) for n in sizes) if self.quick else sizes

    def milliseconds(self, function, min_run_time=0.2) -> float:
        timer = Timer(
            "function()", globals={"function": function}, num_threads=torch.get_num_threads()
        )
        run_time = min_run_time / 100 if self.quick else min_run_time
        return timer.blocked_autorange(min_run_time=run_time).median * 1e3

    def in_turns(self, functions: dict, alone=False) -> dict[str, float]:
        """Medians. With `alone` the functions are Made, and only one at a time has memory."""
        for function in functions.values() if not alone else ():
            function()  # state comes into being, kernels are compiled
        rounds = []
        for _ in range(1 if self.quick else 3 if alone else 5):
            times = {}
            for name, function in functions.items():
                if alone:
                    function()
                times[name] = self.milliseconds(function)
                if alone:
                    function.release()
            rounds.append(times)
        return {name: statistics.median(r[name] for r in rounds) for name in functions}

    def compare(
        self, functions: dict, bytes_moved=None, operations=0, alone=False, tensors=1
    ) -> dict:
        """Figures of functions["ours"] beside the others'. One that fails is named and left out."""
        failed = {}
        for name in [name for name in functions if name != "ours"]:
            try:
                functions[name]()
                if alone:
                    functions[name].release()
            except Exception as error:  # a peer's kernels may not take this shape or device
                failed[f"failed_{name}"] = (str(error) or repr(error)).splitlines()[0]
                del functions[name]
        times = self.in_turns(functions, alone)
        ours = times["ours"]
        result = {
            f"ratio_to_{name}": rounded(time / ours)
            for name, time in times.items()
            if name != "ours"
        }
        if bytes_moved is not None:
            floors = {
                "bytes": bytes_moved / self.bytes_per_second * 1e3,
                "operations": operations / self.operations_per_second * 1e3,
            }
            limit = max(floors, key=floors.get)
            result |= {"share_of_floor": rounded(floors[limit] / ours), "limited_by": limit}
            if self.cuda:
                result["milliseconds_floor"] = rounded(floors[limit])
        if self.cuda:
            result["milliseconds"] = rounded(ours)
            result |= {f"milliseconds_{n}": rounded(t) for n, t in times.items() if n != "ours"}
        if tensors > 1:
            result["microseconds_each"] = rounded(ours * 1e3 / tensors)
        return result | failed


class Made:
    """A function that is made at its first call, so that one that cannot be made fails there."""

    def __init__(self, make):
        self.make, self.function = make, None

    def __call__(self):
        self.function = self.function or self.make()
        return self.function()

    def release(self):
        self.function = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@contextmanager
def side_stream():
    """A stream that waits for the current one, which then waits for it: where torch asks for a few
    calls of what is to be captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        yield
    torch.cuda.current_stream().wait_stream(side)


def captured(function, calls=1):
    """The replay of a CUDA graph of so many calls, after three on another stream."""
    with side_stream():
        for _ in range(3):
            function()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            function()
    return graph.replay


def rounded(value: float) -> float:
    """Three digits behind the point, or of the value where it is small."""
    return round(value, 3) if value >= 0.1 else float(f"{value:.3g}")


def polar_operations(rule: str, m: int, n: int, steps: int = 5) -> int:
    """The fewest of the quintic iteration on an m×n matrix: by its Gram matrix or without, no
    restarts; a symmetric product of k×k from k×l takes k·k·l, any other twice that."""
    k, other = (n, m) if rule == "right_spectral" or (rule != "left_spectral" and m > n) else (m, n)
    standard = steps * (3 * k * k * other + k**3)
    # One R and one QX of the long side; of k×k a Z in each step, and in all but one Q, RZ and R.
    gram = 3 * k * k * other + (steps + 3 * (steps - 1)) * k**3
    return min(standard, gram)


def parameters(shapes, dtype, device) -> list[torch.Tensor]:
    """With gradients; the same shapes give the same values."""
    generator = torch.Generator(device).manual_seed(0)
    result = []
    for shape in shapes:
        p = torch.randn(shape, dtype=dtype, device=device, generator=generator).requires_grad_()
        p.grad = torch.randn(shape, dtype=dtype, device=device, generator=generator)
        result.append(p)
    return result


def measure_hardware(settings: Settings) -> Settings:
    source = torch.rand(1 << (20 if settings.quick else 27), device=settings.device)
    target = torch.rand_like(source)
    times = settings.in_turns(
        {"copy": lambda: target.copy_(source), "in_place": lambda: target.neg_()}
    )
    # The fastest of several: which size and type fill the device differs.
    rates = dict.fromkeys((FP32, BF16, FP16), 0.0)
    for n in settings.shrink(*((4096, 8192) if settings.cuda else (2048,))):
        for dtype in (FP32, BF16, FP16) if settings.cuda else (FP32, BF16):
            a, b, out = torch.randn(3, n, n, device=settings.device).to(dtype).unbind()
            product = settings.milliseconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), 0.5)
            rates[dtype] = max(rates[dtype], 2 * n**3 / product * 1e3)
    return settings._replace(
        bytes_per_second=2 * source.numel() * 4 / min(times.values()) * 1e3,
        operations_per_second=max(rates.values()),
        bfloat16_over_float32=rates[BF16] / rates[FP32],
    )


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def commit() -> str | None:
    """That of the checkout that this file is in, with "-dirty" where more than results differs."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists() or not shutil.which("git"):
        return None

    def git(*words):
        return subprocess.run(["git", "-C", root, *words], capture_output=True, text=True)

    head = git("rev-parse", "HEAD").stdout.strip()
    dirty = git("diff", "--quiet", "HEAD", "--", ".", ":!benchmarks/results").returncode == 1
    return head + "-dirty" * dirty or None


def circumstances() -> dict:
    """How, when, where and with what a report was made."""
    return {
        "command": "python " + " ".join(sys.argv),
        "date": date.today().isoformat(),
        "machine": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "commit": commit(),
        "versions": {"erlangen": erlangen.__version__, "torch": torch.__version__},
    }


def parser(description: str) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=description.splitlines()[0])
    result.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    result.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    result.add_argument("--only", default="", help="cases whose name contains this")
    result.add_argument("--quick", action="store_true", help="tiny shapes: does everything run?")
    result.add_argument("--out", help="where the results go, as JSON")
    return result


def run(args, cases: dict) -> dict:
    """Runs cases, functions of the settings and the peers found, and writes their report."""
    if args.threads:
        torch.set_num_threads(args.threads)
    settings = measure_hardware(Settings(args.device, args.quick))
    found, status = peers.find(args.device)
    instructions = torch.cpu.get_capabilities()
    report = circumstances() | {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_bfloat16": [k for k in ("avx512_bf16", "amx_bf16") if instructions.get(k)],
        "threads": torch.get_num_threads(),
        "peers": status,
        "bfloat16_over_float32": round(settings.bfloat16_over_float32, 1),
        "results": {},
    }
    if settings.cuda:
        report["machine"] = torch.cuda.get_device_name()
        report["versions"]["cuda"] = torch.version.cuda
        report["memory_GB_per_s"] = round(settings.bytes_per_second / 1e9)
        report["products_TFLOP_per_s"] = round(settings.operations_per_second / 1e12)
    for name, case in cases.items():
        if args.only not in name:
            continue
        try:
            result = case(settings, found)
        except torch.OutOfMemoryError:
            result = {"failed": "out of memory"}
        report["results"][name] = result
        print(name, result, flush=True)
        if settings.cuda:
            torch.cuda.empty_cache()
        if args.out:  # after every case, so that a run cut short leaves what it has
            Path(args.out).write_text(json.dumps(report, indent=2) + "\n")
    return report
