"""Optimizer steps of single groups beside torch's own and beside what the hardware allows.

    python benchmarks/steps.py [--device cpu|cuda] [--threads N] [--out FILE.json]

Every case runs in turns with torch.optim.AdamW(fused=True) and, where the rule is spectral, the
Muon of torch and of each peer; where it is another matrix rule, with the reference: the same rule
by plain ATen operations, the polar iteration in its standard form with products of the same type.
All have the same parameters and gradients. harness.py says what the figures mean; of cases of
several tensors also

microseconds_each: our time over their number.

and of those of many

ratio_to_one_tensor: the time of one tensor with the same rows or matrices over ours.
percent_outside_kernels: the time of as many parameters of one element over ours: Python, checks,
    planning and launches.
"""

import erlangen
import harness
import torch
from erlangen import _C
from harness import BF16, FP32

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
    "column_norm 32768x1024": ({"rule": "column_norm"}, [(32768, 1024)], FP32, 24),
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
GPU_CASES = {
    "row_norm 1000000x1000": ({"rule": "row_norm"}, [(1000000, 1000)], FP32, 20),
    "row_norm centered 151936x1024": (
        {"rule": "row_norm", "center": True},
        [(151936, 1024)],
        FP32,
        28,
    ),
    "spectral 4096x4096": ({"rule": "spectral"}, [(4096, 4096)], BF16, 14),
    "spectral 4096x11008": ({"rule": "spectral"}, [(4096, 11008)], BF16, 14),
}


def reference(params, options):
    # By itself the standard form would take bfloat16 on a CPU where one-sided rules take float32.
    dtype = "float32" if params[0].device.type == "cpu" else "auto"
    options = {**options, "ns_method": "standard", "ns_dtype": dtype}
    step = erlangen.Equivariant([{"params": params, **options}]).step

    def without_kernels():
        _C.use_kernels(False)
        try:
            step()
        finally:  # or all that is measured after one that ran out of memory would go without
            _C.use_kernels(True)

    return without_kernels


def run(options, shapes, dtype, bytes_per_element, settings, peers) -> dict:
    rule, device = options["rule"], settings.device
    shapes = [settings.shrink(*shape) for shape in shapes]

    def ours(shapes):
        params = harness.parameters(shapes, dtype, device)
        return erlangen.Equivariant([{"params": params, **options}]).step

    params = harness.parameters(shapes, dtype, device)
    functions = {
        "ours": erlangen.Equivariant([{"params": params, **options}]).step,
        "adamw_fused": torch.optim.AdamW(params, fused=True).step,
    }
    if rule == "spectral":
        for name, peer in peers.items():
            if peer.muon:
                # Made at the first call, so that one that refuses these parameters is reported.
                functions[f"{name}_muon"] = harness.Made(lambda make=peer.muon: make(params).step)
    elif rule != "adamw":
        functions["reference"] = reference(params, options)
    if len(shapes) >= 100:
        functions["one_tensor"] = ours([(len(shapes), *shapes[0])])
        functions["empty"] = ours([(1,) * len(shape) for shape in shapes])
    elements = sum(p.numel() for p in params)
    operations = 0
    if rule.endswith("spectral"):
        operations = sum(harness.polar_operations(rule, *shape[-2:]) for shape in shapes)
    result = settings.compare(
        functions, elements * bytes_per_element, operations, tensors=len(shapes)
    )
    if "empty" in functions:
        result["percent_outside_kernels"] = harness.rounded(100 * result.pop("ratio_to_empty"))
    return result


def main(argv=None) -> dict:
    args = harness.parser(__doc__).parse_args(argv)
    cases = CASES | (GPU_CASES if args.device == "cuda" else {})
    return harness.run(
        args,
        {
            name: lambda settings, peers, case=case: run(*case, settings, peers)
            for name, case in cases.items()
        },
    )


if __name__ == "__main__":
    main()
