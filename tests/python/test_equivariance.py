"""Whole trainings commute with the model's symmetries.

Two models that compute the same function, related by a symmetry T, are trained alike. An optimizer
is equivariant if T maps one's weights onto the other's. Distances are relative to how far a tensor
has moved, so that a tensor that stays passes nothing.
"""

import functools
from types import MappingProxyType

import erlangen
import pytest
import torch
import torch.nn.functional as F
from equivariant_models import (
    HEAD_DIM,
    HEADS,
    INTERLEAVED,
    KV_HEADS,
    LENGTH,
    PERMUTATIONS,
    ROLES,
    ROTATIONS,
    TOGETHER,
    TRANSPOSE,
    VOCABULARY,
    Model,
    heads,
)

STEPS = 20
# float64 rounds at 2e-16. Sums of up to 50 terms cost a factor of 10; the polar factor's derivative
# is the inverse of the least relative singular value, or the iteration's slope at 0, both below
# 1e3; and these trainings amplify a difference of their initial weights by up to 2e2 (measured
# with a relative one of 1e-10).
BOUND = 1e-9
# What is not equivariant has no reason to come closer than this.
BROKEN = 1e-2

# Rules of which rows are the units take gate and up of a neuron as one row, and `down` transposed.
ROWS_ARE_NEURONS = {
    "layers.0.mlp.down.weight": {"layout": [TRANSPOSE]},
    "layers.1.mlp.gate_up": {"layout": [{"pairs": "concatenated", "dim": -2}]},
    "layers.1.mlp.down": {"layout": [TRANSPOSE]},
    "layers.2.mlp.gate_up": {"layout": [TRANSPOSE, INTERLEAVED]},
    "layers.2.mlp.down": {"layout": []},
}
LOGITS = ("embedding", "lm_head", "router")
NEURONS = ("mlp_in", "mlp_out", "expert_in", "expert_out")


def by_rows(**options):
    """A rule of rows for every block but attention, whose heads may be rotated from both sides."""
    return dict.fromkeys(LOGITS + NEURONS, options) | ROWS_ARE_NEURONS


SIDED = {
    "embedding": {"rule": "right_spectral"},
    "lm_head": {"rule": "right_spectral"},
    "mlp_in": {"rule": "right_spectral"},
    "mlp_out": {"rule": "left_spectral"},
}
ALPHA = {"alpha": 1.0}
# The rules of each block: overrides on top of ROLES.
SCHEMES = {
    "defaults": {},
    "row_norm": by_rows(rule="row_norm")
    | {"layers.0.mlp.down.weight": {"rule": "column_norm", "layout": []}},
    "hybrid": by_rows(rule="hybrid"),
    "polar_then_row": by_rows(rule="hybrid", order="polar_then_row"),
    "one_sided": SIDED,
    "alpha": dict.fromkeys(("attention", "router", "expert_in", "expert_out"), ALPHA)
    | {role: options | ALPHA for role, options in SIDED.items()},
    "hybrid_alpha": by_rows(rule="hybrid", alpha=1.0),
    "polar_first": {"*": {"momentum_order": "polar_first"}},
    # Lookup tables become column_norm of the transpose.
    "original": {"*": {"adjust_lr_fn": "original"}},
    "unit_rms_norm": {"*": {"adjust_lr_fn": "unit_rms_norm"}},
    "tied": {},  # the head is the embedding
}
SYMMETRIES = PERMUTATIONS | ROTATIONS | TOGETHER
ADAMW = {"lr": 1e-2, "decay": 0.1}
EPS = torch.finfo(torch.float64).eps
# Nuclear norms are small of gradients, and large of unit rows; polar_first averages directions of
# different batches.
LR = {"alpha": 0.4, "hybrid_alpha": 2e-3, "polar_first": 3e-2}


def equivariant(model, changes, **options):
    roles = dict(ROLES)
    if model.head.weight is not model.embedding.weight:
        roles["lm_head"] = {"center": True}  # found by its shape alone, it would not be
    overrides = {name: roles.get(name, {}) | changes.get(name, {}) for name in {**roles, **changes}}
    return erlangen.Equivariant(erlangen.param_groups(model, overrides), **options)


def optimizer_of(model, rules, ns_method, overrides=MappingProxyType({})):
    """The optimizer of a scheme, or torch's AdamW; `overrides` come on top of the scheme's."""
    if rules == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=ADAMW["lr"], weight_decay=ADAMW["decay"])
    lr = LR.get(rules, 2e-2)
    changes = SCHEMES[rules] | overrides
    return equivariant(model, changes, lr=lr, weight_decay=0.1, ns_method=ns_method)


def weights_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def train(model, optimizer, tokens_map=lambda t: t):
    """Next-token cross-entropy on random tokens, other ones at each step."""
    g = torch.Generator().manual_seed(2)
    device = next(model.parameters()).device
    for _ in range(STEPS):
        tokens = torch.randint(VOCABULARY, (4, LENGTH + 1), generator=g).to(device)
        tokens = tokens_map(tokens)
        optimizer.zero_grad()
        logits = model(tokens[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()


def model_on(device, with_rope=True, rules="defaults"):
    torch.manual_seed(1)
    return Model(with_rope, tied=rules == "tied").to(device)


def movement(before, after):
    """How far each tensor went; all have to move, or a distance means nothing."""
    way = {name: (after[name] - w).norm() for name, w in before.items()}
    still = [name for name, w in before.items() if way[name] < 1e-2 * w.norm()]
    assert not still, f"hardly moved: {still}"
    return way


@functools.cache
def trained(rules, ns_method, with_rope, device):
    """Weights before and after the training that each transformed one is compared to."""
    model = model_on(device, with_rope, rules)
    before = weights_of(model)
    train(model, optimizer_of(model, rules, ns_method))
    return before, weights_of(model)


def distances(symmetry, make_optimizer, before, after, rules="defaults"):
    """||T(W_a) - W_b|| / ||W_b - W_b0|| of each tensor, for a training a from `before` to `after`,
    and its image b, made here."""
    device = after["embedding.weight"].device
    model = model_on(device, symmetry.with_rope, rules)
    start = symmetry.of(before)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(start[name])
    train(model, make_optimizer(model), symmetry.tokens)
    end, image = weights_of(model), symmetry.of(after)
    way = movement(start, end)
    return {name: ((image[name] - w).norm() / way[name]).item() for name, w in end.items()}


def distances_of(rules, ns_method, name, device):
    symmetry = SYMMETRIES[name](torch.Generator().manual_seed(3))
    runs = trained(rules, ns_method, symmetry.with_rope, device)
    return distances(symmetry, lambda model: optimizer_of(model, rules, ns_method), *runs, rules)


def assert_equivariant(found):
    failed = {name: distance for name, distance in found.items() if not distance <= BOUND}
    assert not failed, f"not equivariant: {failed}"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors of this size gain nothing from threads, which would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


both_methods = pytest.mark.parametrize("ns_method", ["auto", "exact"])


# Permutations and rotations


@both_methods
@pytest.mark.parametrize("name", PERMUTATIONS | ROTATIONS)
def test_default_roles_are_equivariant(device, name, ns_method):
    assert_equivariant(distances_of("defaults", ns_method, name, device))


@both_methods
@pytest.mark.parametrize("name", TOGETHER)
@pytest.mark.parametrize("rules", [rules for rules in SCHEMES if rules != "defaults"])
def test_every_rule_of_a_block_is_equivariant(device, rules, name, ns_method):
    assert_equivariant(distances_of(rules, ns_method, name, device))


@pytest.mark.parametrize("name", PERMUTATIONS)
def test_adamw_is_equivariant_under_permutations(device, name):
    assert_equivariant(distances_of("adamw", None, name, device))


@pytest.mark.parametrize("name", ROTATIONS)
def test_adamw_is_not_equivariant_under_rotations(device, name):
    """So the tests above are about the rules, not about what any optimizer has."""
    found = distances_of("adamw", None, name, device)
    rotated = SYMMETRIES[name](torch.Generator()).weights
    assert min(found[weight] for weight in rotated) > BROKEN


WRONG = {
    # Half heads, as if there were twice as many: a rotation of a head mixes its halves.
    "heads cut in two": (
        "heads rotated",
        {
            "*.q.weight": {"layout": heads(2 * HEADS, -2)},
            "*.[kv].weight": {"layout": heads(2 * KV_HEADS, -2)},
            "*.o.weight": {"layout": heads(2 * HEADS, -1)},
        },
    ),
    # Its rows are the hidden basis, its columns the neurons.
    "down normalised by the wrong side": (
        "hidden basis rotated",
        {"layers.0.mlp.down.weight": {"rule": "row_norm"}},
    ),
    "unit rows for queries": ("heads rotated", {"*.q.weight": {"rule": "row_norm"}}),
    "gates taken for ups": (
        "neurons permuted",
        # Concatenated slices read as interleaved ones: rows then join two neurons.
        ROWS_ARE_NEURONS
        | {
            "expert_in": {"rule": "row_norm"},
            "layers.1.mlp.gate_up": {"layout": [{"pairs": "interleaved", "dim": -2}]},
        },
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_layout_or_rule_is_found(device, wrong):
    name, overrides = WRONG[wrong]
    found = distances_with(overrides, name, device)
    assert max(found.values()) > BROKEN


def test_joint_polar_has_the_symmetry_of_heads_too(device):
    """Rotations of single heads are a subgroup of those of all; heads are split for decoupling."""
    whole = dict.fromkeys(("*.q.weight", "*.[kv].weight", "*.o.weight"), {"layout": []})
    assert_equivariant(distances_with(whole, "heads rotated", device))


def distances_with(overrides, name, device):
    symmetry = SYMMETRIES[name](torch.Generator().manual_seed(3))

    def optimizer(model):
        return optimizer_of(model, "defaults", "auto", overrides=overrides)

    model = model_on(device, symmetry.with_rope)
    before = weights_of(model)
    train(model, optimizer(model))
    return distances(symmetry, optimizer, before, weights_of(model))


# The shared shift of logits

CENTERED = ("head.weight", "layers.1.mlp.router.weight", "layers.2.mlp.router.weight")


def shift(weight):
    """What all rows have in common; the softmax does not see it."""
    return weight.mean(-2)


def drift(before, after, factor=1.0):
    """How much of a centered tensor's movement goes along the shift, beyond its decay."""
    found = {}
    for name in [name for name in CENTERED if name in after]:
        w, w0 = after[name], before[name]
        along = (shift(w) - factor * shift(w0)).norm() * len(w) ** 0.5
        found[name] = (along / (w - w0).norm()).item()
    return found


@both_methods
@pytest.mark.parametrize("rules", SCHEMES)
def test_shift_stays(device, rules, ns_method):
    before, after = trained(rules, ns_method, False, device)
    assert_equivariant(drift(before, after))


@pytest.mark.parametrize("rules", SCHEMES)
def test_shift_decays_by_exactly_one_minus_lr_times_decay(device, rules):
    model = model_on(device, rules=rules)
    weights = dict(model.named_parameters())
    decays = dict(zip(CENTERED, (0.1, 0.5, 0.0), strict=True))
    decays = {name: decay for name, decay in decays.items() if name in weights}
    overrides = {name: {"weight_decay": decay} for name, decay in decays.items()}
    optimizer = optimizer_of(model, rules, "auto", overrides=overrides)
    shifts = [{name: shift(weights[name].detach()) for name in decays}]
    optimizer.register_step_post_hook(
        lambda *_: shifts.append({name: shift(weights[name].detach()) for name in decays})
    )
    train(model, optimizer)
    assert len(shifts) == STEPS + 1
    lr = optimizer.param_groups[0]["lr"]
    for old, new in zip(shifts, shifts[1:], strict=False):
        for name, decay in decays.items():
            # Decay, update and mean round each entry a few times in a step.
            largest = weights[name].abs().max() + 1
            torch.testing.assert_close(
                new[name], (1 - lr * decay) * old[name], rtol=0, atol=8 * EPS * largest.item()
            )


def test_adamw_moves_the_shift(device):
    before, after = trained("adamw", None, False, device)
    factor = (1 - ADAMW["lr"] * ADAMW["decay"]) ** STEPS
    assert min(drift(before, after, factor).values()) > BROKEN


def test_the_same_rules_without_centering_move_the_shift(device):
    model = model_on(device)
    before = weights_of(model)
    overrides = dict.fromkeys(("lm_head", "router"), {"rule": "row_norm", "center": False})
    train(model, optimizer_of(model, "defaults", "auto", overrides=overrides))
    assert min(drift(before, weights_of(model)).values()) > BROKEN


# One expert, or one head, does not feel another


EVERY = range(3)  # step


def run_with_one_rescaled(
    rules, ns_method, factor, steps, dtype, device, overrides=MappingProxyType({})
):
    """The parts before and after steps with random gradients, part 1's rescaled in some of them.

    Gradients are set: through a model the others would soon differ for good reason.
    """
    model = model_on(device).to(dtype)
    optimizer = optimizer_of(model, rules, ns_method, overrides=overrides)
    weights = {name: w for name, w in model.named_parameters() if name in PARTS}
    before = {name: PARTS[name](w.detach().clone()) for name, w in weights.items()}
    g = torch.Generator().manual_seed(4)
    for step in EVERY:
        for name, w in weights.items():
            grad = torch.randn(w.shape, generator=g, dtype=torch.float64)
            if step in steps:
                PARTS[name](grad)[1] *= factor
            w.grad = grad.to(w)
        optimizer.step()
    return before, {name: PARTS[name](w.detach()) for name, w in weights.items()}


OF_EXPERT = {
    f"layers.{layer}.mlp.{name}": lambda w: w for layer in (1, 2) for name in ("gate_up", "down")
}
OF_HEAD = {
    "layers.0.attention.q.weight": lambda w: w.unflatten(0, (HEADS, HEAD_DIM)),
    "layers.0.attention.o.weight": lambda w: w.unflatten(1, (HEADS, HEAD_DIM)).transpose(0, 1),
}


PARTS = OF_EXPERT | OF_HEAD


def others_of(parts):
    return {name: torch.cat([w[:1], w[2:]]) for name, w in parts.items()}


def same(a, b):
    return {name: torch.equal(a[name], b[name]) for name in a}


@pytest.mark.parametrize(
    "ns_method, dtype",
    [
        ("auto", torch.float64),
        ("exact", torch.float64),
        ("auto", torch.float32),
        ("auto", torch.bfloat16),
    ],
    ids=str,
)
@pytest.mark.parametrize("rules", [rules for rules in SCHEMES if rules != "tied"])
def test_rescaling_one_expert_or_head_leaves_the_others_to_the_bit(device, rules, ns_method, dtype):
    def run(factor, steps):
        return run_with_one_rescaled(rules, ns_method, factor, steps, dtype, device)

    before, plain = run(1.0, EVERY)
    assert not any(same(before, plain).values())
    for factor in (0.0, 1e-30, 1000.3, 1e30):
        for steps in (EVERY, [1]):
            _, after = run(factor, steps)
            assert all(w.isfinite().all() for w in after.values())
            unchanged = same(others_of(plain), others_of(after))
            assert all(unchanged.values()), (factor, steps, unchanged)
            # Directions do not see a factor that stays, nor do averages of directions any.
            if factor == 0.0 or (steps != EVERY and rules != "polar_first"):
                kept = {name: torch.equal(plain[name][1], after[name][1]) for name in PARTS}
                assert not any(kept.values()), (factor, steps, kept)


def test_one_matrix_of_all_experts_or_heads_would_couple_them(device):
    together = dict.fromkeys(OF_EXPERT, {"layout": [{"flatten": True}]})
    together |= dict.fromkeys(OF_HEAD, {"layout": []})
    plain, rescaled = (
        run_with_one_rescaled("defaults", "auto", f, EVERY, torch.float64, device, together)[1]
        for f in (1.0, 1000.3)
    )
    unchanged = same(others_of(plain), others_of(rescaled))
    assert not any(unchanged.values()), unchanged
