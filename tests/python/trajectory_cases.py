"""Optimizers of every kind, small enough to run them all: parameters, options, gradients.

Each case is plain data (str, numbers, lists, dicts, tensors), so that a C++ program can read it.
"""

import itertools

import torch

STEPS = 20
SAVE_STEP = 10  # before which the optimizer goes to a file and back
HALVE_LR = [3, 8]  # before and after it
RULES = {
    "spectral": {"rule": "spectral"},
    "right_spectral": {"rule": "right_spectral"},
    "left_spectral": {"rule": "left_spectral"},
    "row_norm": {"rule": "row_norm"},
    "column_norm": {"rule": "column_norm"},
    "hybrid": {"rule": "hybrid"},
    "hybrid_polar_then_row": {"rule": "hybrid", "order": "polar_then_row"},
    "adamw": {"rule": "adamw"},
}
MATRIX_RULES = {rule: options for rule, options in RULES.items() if rule != "adamw"}
POLAR = ("spectral", "right_spectral", "left_spectral", "hybrid")
CENTERED = (*POLAR, "row_norm", "hybrid_polar_then_row")

PRECISIONS = {
    "fp32": ("float32", {}),
    "fp64": ("float64", {}),
    "bf16": ("bfloat16", {}),
    "fp16": ("float16", {}),
    "bf16_rounded": ("bfloat16", {"stochastic_rounding": True, "seed": 3}),
    "bf16_state": ("float32", {"state_dtype": "bfloat16"}),
    "bf16_all": (
        "bfloat16",
        {"state_dtype": "bfloat16", "stochastic_rounding": True, "seed": -1},
    ),
}

TRANSPOSE, FLATTEN = {"transpose": True}, {"flatten": True}
ROWS, COLUMNS = -2, -1


def heads(n, dim):
    return {"heads": n, "dim": dim}


def sections(sizes, dim):
    return {"sections": sizes, "dim": dim}


def pairs(order, dim):
    return {"pairs": order, "dim": dim}


# name: (layout, shape)
LAYOUTS = {
    "transpose": ([TRANSPOSE], (8, 6)),
    "heads_rows": ([heads(4, ROWS)], (8, 6)),
    "heads_columns": ([heads(3, COLUMNS)], (8, 6)),
    "sections_rows": ([sections([4, 2, 2], ROWS)], (8, 6)),
    "sections_columns": ([sections([1, 5], COLUMNS)], (8, 6)),
    "pairs_concatenated_rows": ([pairs("concatenated", ROWS)], (8, 6)),
    "pairs_interleaved_rows": ([pairs("interleaved", ROWS)], (8, 6)),
    "pairs_concatenated_columns": ([pairs("concatenated", COLUMNS)], (8, 6)),
    "pairs_interleaved_columns": ([pairs("interleaved", COLUMNS)], (8, 6)),
    "flatten": ([FLATTEN], (8, 3, 2, 2)),
    "experts": ([], (3, 8, 6)),
    "experts_gate_up": ([TRANSPOSE, pairs("interleaved", ROWS)], (3, 6, 8)),
    "fused_qkv": ([sections([8, 4, 4], ROWS), heads(2, ROWS)], (16, 6)),
    "grouped_convolution": ([FLATTEN, heads(2, ROWS)], (8, 3, 2, 2)),
    "transposed_convolution": ([FLATTEN, TRANSPOSE], (4, 3, 2, 2)),
    "heads_both": ([heads(2, ROWS), heads(3, COLUMNS)], (8, 6)),
    "sections_pairs": ([sections([4, 8], ROWS), pairs("concatenated", ROWS)], (12, 6)),
}
# What is crossed with every layout under every matrix rule: (dtype, options).
VARIANTS = {
    "plain": ("float32", {}),
    "support": ("float32", {"support": "gradient"}),
    "polar_first": ("float32", {"momentum_order": "polar_first"}),
    "alpha": ("float32", {"alpha": 1.0}),
    "alpha_polar_first": ("float32", {"alpha": 1.0, "momentum_order": "polar_first"}),
    "centered": ("float32", {"center": True}),
    "bf16": ("bfloat16", {}),
    "bf16_rounded": ("bfloat16", {"stochastic_rounding": True, "seed": 3}),
}


def is_allowed(rule, layout, options):
    if "alpha" in options and rule not in POLAR:
        return False
    splits_units = any({"heads", "sections", "pairs"} & step.keys() for step in layout)
    return "center" not in options or (rule in CENTERED and not splits_units)


def case(options, shapes=((8, 6), (6, 8), (8, 6)), dtype="float32", preset="Equivariant"):
    return {
        "preset": preset,
        "defaults": {"lr": 0.02, "weight_decay": 0.1},
        "groups": [{"options": options, "shapes": [list(shape) for shape in shapes]}],
        "dtype": dtype,
    }


def layouts_case(rule, variant):
    """A group for each layout that these options allow, named by its role; None without any."""
    dtype, options = VARIANTS[variant]
    groups = [
        {
            "options": {**RULES[rule], **options, "layout": layout, "role": name},
            "shapes": [list(shape)] * 2,
        }
        for name, (layout, shape) in LAYOUTS.items()
        if is_allowed(rule, layout, options)
    ]
    return {**case({}, dtype=dtype), "groups": groups} if groups else None


def cases() -> dict[str, dict]:
    """Name -> case, without tensors."""
    found = {}
    for (rule, options), (name, (dtype, more)) in itertools.product(
        RULES.items(), PRECISIONS.items()
    ):
        shapes = ((8, 6), (6, 8), (8, 6)) if rule != "adamw" else ((8, 6), (5,), ())
        found[f"{rule}_{name}"] = case({**options, **more}, shapes, dtype)
    for rule, options in RULES.items():
        found[f"{rule}_cautious"] = case({**options, "decay": "cautious"})
        found[f"{rule}_support"] = case({**options, "support": "gradient"})
        found[f"{rule}_maximize"] = case({**options, "maximize": True, "update_scale": 3.0})
        if rule == "adamw":
            continue
        for order in ("momentum_first", "polar_first"):
            for nesterov in (True, False):
                more = {"momentum_order": order, "nesterov": nesterov, "momentum": 0.8}
                found[f"{rule}_{order}_{nesterov}"] = case({**options, **more})
        for fn in ("original", "spectral_unclamped", "unit_rms_norm", "none"):
            found[f"{rule}_{fn}"] = case({**options, "adjust_lr_fn": fn})
    for rule in CENTERED:
        found[f"{rule}_centered"] = case({**RULES[rule], "center": True})
    for rule, alpha in itertools.product(POLAR, (1.0, 0.5)):
        for order in ("momentum_first", "polar_first"):
            more = {"alpha": alpha, "momentum_order": order}
            found[f"{rule}_alpha_{alpha}_{order}"] = case({**RULES[rule], **more})
    for rule, variant in itertools.product(MATRIX_RULES, VARIANTS):
        crossed = layouts_case(rule, variant)
        if crossed:
            found[f"{rule}_layouts_{variant}"] = crossed
    for coefficients in ("polar_express", "jordan", "you", "deepseek_v4", "cubic"):
        found[f"coefficients_{coefficients}"] = case(
            {"rule": "spectral", "ns_coefficients": coefficients}
        )
    triples = [[3.4445, -4.775, 2.0315], [2.0, -1.5, 0.5]]
    found["coefficients_own"] = case(
        {"rule": "spectral", "ns_coefficients": triples, "ns_steps": 4}
    )
    for method in ("standard", "gram", "exact"):
        for rule in POLAR:
            found[f"{rule}_{method}"] = case({**RULES[rule], "ns_method": method})
    for ns_dtype in ("float32", "bfloat16", "float16"):
        found[f"products_{ns_dtype}"] = case({"rule": "spectral", "ns_dtype": ns_dtype})
    found["adamw_betas"] = case({"rule": "adamw", "betas": [0.7, 0.8], "eps": 1e-3})
    found["adamw_update_scale"] = case({"rule": "adamw", "update_scale": 0.5})
    for preset in ("Muon", "PolarGrad", "RowNorm", "RightSpectral", "LeftSpectral", "Hybrid"):
        found[preset] = case({}, preset=preset)
    # Groups that share a bucket, beat the defaults and differ in everything else.
    found["mixed"] = {
        "preset": "Equivariant",
        "defaults": {"lr": 0.02, "rule": "row_norm", "momentum": 0.7, "weight_decay": 0.0},
        "groups": [
            {"options": {}, "shapes": [[8, 6], [5, 4]]},
            {"options": {"rule": "spectral", "lr": 0.1}, "shapes": [[8, 6]]},
            {"options": {"momentum": 0.5, "update_scale": 2.0}, "shapes": [[8, 6]]},
            {"options": {"rule": "adamw", "weight_decay": 0.3}, "shapes": [[7], [8, 6]]},
            {
                "options": {"rule": "hybrid", "role": "lm_head", "center": True},
                "shapes": [[8, 6]],
            },
        ],
        "dtype": "float32",
    }
    return found


def with_tensors(name: str, plain: dict) -> dict:
    """The case with its first parameters, the gradients of every step (None: there is none), the
    step before which the optimizer goes to a file, and those before which the rates are halved."""
    generator = torch.Generator().manual_seed(sum(name.encode()))
    dtype = getattr(torch, plain["dtype"])

    def draw(shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    groups = [
        {"options": g["options"], "params": [draw(shape) for shape in g["shapes"]]}
        for g in plain["groups"]
    ]
    grads = []
    # Some parameters get no gradient at times: state comes late, before the file or after it.
    missing = {1: (0, 4, STEPS - 2), 2: range(SAVE_STEP + 1)}
    for step in range(STEPS):
        of_step = [draw(p.shape) for group in groups for p in group["params"]]
        for i, grad in enumerate(of_step):
            if grad.dim() > 1:  # rows without a gradient, for `support`
                grad[step % grad.shape[0]] = 0
                grad[..., step % grad.shape[-2], :] = 0
            if step in missing.get(i, ()):
                of_step[i] = None
        grads.append(of_step)
    plan = {"name": name, "groups": groups, "grads": grads}
    return {**plain, **plan, "halve_lr": HALVE_LR, "save_step": SAVE_STEP}
