"""`python -m erlangen`: versions, what was built, kernels and their speed.

Of each GPU, or of the CPU where there is none. What to paste into a report; it takes less than a
minute. Times on machines that others share mean nothing but beside each other, so they are ratios.
Exits with 1 where a kernel fails its check.
"""

import os
import platform
import sys
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from . import _C, Equivariant, __version__
from ._build import INFO

SWITCHES = ("ERLANGEN_SELF_CHECK", "ERLANGEN_WGMMA")


def versions() -> Iterator[str]:
    torch_cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    yield f"erlangen {__version__}, {Path(__file__).parent}"
    yield f"torch {torch.__version__} ({torch_cuda}), Python {platform.python_version()}"
    yield platform.platform()
    yield f"built for torch {INFO['torch']} by {INFO['compiler']}"
    if INFO["cuda"]:
        wgmma = "with" if INFO["wgmma"] else "without"
        yield (
            f"CUDA kernels by CUDA {INFO['cuda']} for {' '.join(INFO['architectures'])} "
            f"({INFO['architectures_from']}), {wgmma} wgmma's"
        )
    else:
        yield f"no CUDA kernels ({INFO['architectures_from']})"
    for name in SWITCHES:
        if name in os.environ:
            yield f"{name}={os.environ[name]}"


def describe_cpu(_: torch.device) -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    found = torch.cpu.get_capabilities()
    more = [name for name in ("avx512_bf16", "amx_bf16") if found.get(name)]
    instructions = " ".join([torch.backends.cpu.get_cpu_capability(), *more])
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {instructions}, {torch.get_num_threads()} threads"


def describe_cuda(device: torch.device) -> str:
    found = torch.cuda.get_device_properties(device)
    memory = f"{found.total_memory / 2**30:.0f} GiB"
    return f"{found.name}, compute capability {found.major}.{found.minor}, {memory}"


def kernels(device: torch.device) -> tuple[list[str], bool]:
    """Lines on the outcome of each kernel's checks, and whether all have passed."""
    outcomes = _C.check_kernels(str(device))
    if not outcomes:
        return ["no kernels for it in this build: plain ATen operations take the steps"], True
    lines, passed = [], True
    for kernel, group in groupby(outcomes, key=lambda outcome: outcome[0].split(" of ")[0]):
        each = list(group)
        failed = [(name, failure) for name, failure in each if failure]
        passed = passed and not failed
        lines.append(f"{kernel}: {len(each) - len(failed)} of {len(each)} checks passed")
        lines += [f"  {name}: {failure}" for name, failure in failed]
    if (
        INFO["wgmma"]
        and device.type == "cuda"
        and torch.cuda.get_device_capability(device) == (9, 0)
    ):
        if not any(name.startswith("symmetric_product_sm90") for name, _ in outcomes):
            lines.append("symmetric_product_sm90: not used; ERLANGEN_WGMMA=1 takes it")
    return lines, passed


def seconds(function: Callable, device: torch.device) -> float:
    """Of one call, in as many as take a twentieth of a second together."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    count = 1
    while True:
        wait(device)
        begin = perf_counter()
        for _ in range(count):
            function()
        wait(device)
        elapsed = perf_counter() - begin
        if elapsed > 0.05:
            return elapsed / count
        count *= 2


def in_turns(functions: dict[str, Callable], device: torch.device) -> dict[str, float]:
    """Medians of seconds, each function timed once in every round."""
    for function in functions.values():
        function()  # state comes into being
    rounds = [{name: seconds(f, device) for name, f in functions.items()} for _ in range(3)]
    return {name: median(times[name] for times in rounds) for name in functions}


def parameters(count: int, sizes: tuple[int, int], device: torch.device) -> list[torch.Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    result = []
    for _ in range(count):
        param = torch.randn(sizes, device=device, generator=generator).requires_grad_()
        param.grad = torch.randn(sizes, device=device, generator=generator)
        result.append(param)
    return result


def row_norm_speed(device: torch.device) -> str:
    rows, columns = (32768, 4096) if device.type == "cuda" else (8192, 1024)
    [param] = parameters(1, (rows, columns), device)
    source = torch.ones(rows, columns, device=device)
    target = torch.empty_like(source)
    ours = Equivariant([{"params": [param], "rule": "row_norm"}])
    adamw = torch.optim.AdamW(parameters(1, (rows, columns), device), fused=True)
    functions = {
        "ours": ours.step,
        "adamw": adamw.step,
        "copy": lambda: target.copy_(source),
        "negation": source.neg_,
    }
    times = in_turns(functions, device)
    # A CPU's copy may read what it will write over, so the faster of two passes over 8 bytes an
    # element; a step has 20: parameter and momentum read and written, the gradient read.
    one_pass = min(times["copy"], times["negation"])
    bandwidth = 20 / times["ours"] / (8 / one_pass)
    absolute = ""
    if device.type == "cuda":
        copied = 8 * param.numel() / one_pass / 1e9
        absolute = f" ({copied:.0f} GB/s; the step takes {times['ours'] * 1e3:.2f} ms)"
    return (
        f"row_norm, {rows}×{columns}: {times['adamw'] / times['ours']:.2f} times as fast as "
        f"torch.optim.AdamW(fused=True), at {bandwidth:.2f} of a copy's bandwidth{absolute}"
    )


def spectral_speed(device: torch.device) -> str:
    if device.type == "cuda":
        count, size = 8, 2048
    else:  # without instructions for bfloat16 torch's takes seconds a matrix
        found = torch.cpu.get_capabilities()
        count, size = 2, 512 if found.get("avx512_bf16") or found.get("amx_bf16") else 192
    ours = Equivariant([{"params": parameters(count, (size, size), device), "rule": "spectral"}])
    muon = torch.optim.Muon(parameters(count, (size, size), device))
    times = in_turns({"ours": ours.step, "muon": muon.step}, device)
    absolute = f" ({times['ours'] * 1e3:.2f} ms)" if device.type == "cuda" else ""
    return (
        f"spectral, {count} of {size}×{size}: {times['muon'] / times['ours']:.2f} times as fast as "
        f"torch.optim.Muon{absolute}"
    )


def attempt(function: Callable, *arguments) -> str:
    """A report goes on where a part of it fails, and says so."""
    try:
        return function(*arguments)
    except Exception as error:
        return f"{function.__name__} failed: {error!r}"


def main() -> int:
    print(*versions(), sep="\n", flush=True)
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    if not devices:
        print("no GPU: torch sees no CUDA device", flush=True)
        devices = [torch.device("cpu")]
    all_passed = True
    for device in devices:
        describe = describe_cuda if device.type == "cuda" else describe_cpu
        print(f"\n{device}: {attempt(describe, device)}", flush=True)
        try:
            lines, passed = kernels(device)
        except Exception as error:  # a device that no longer answers
            lines, passed = [f"checks failed: {error!r}"], False
        print(*(f"  {line}" for line in lines), sep="\n", flush=True)
        all_passed = all_passed and passed
        for speed in (row_norm_speed, spectral_speed):
            print(f"  {attempt(speed, device)}", flush=True)
    return 0 if all_passed else 1


if __name__ == "__main__":
    sys.exit(main())
