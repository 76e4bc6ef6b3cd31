"""What an optimizer holds: state, memory for the time of a step, and nothing that grows."""

import ctypes
import gc
import sys

import erlangen
import pytest
import torch
from erlangen import _C
from rule_helpers import one_thread  # noqa: F401
from torch.profiler import ProfilerActivity, profile

MATRIX_RULES = [
    "row_norm",
    "column_norm",
    "spectral",
    "right_spectral",
    "left_spectral",
    "hybrid",
]


def state_bytes(optimizer) -> int:
    """Of the tensors that are as large as their parameter; torch's counters of steps are not."""
    return sum(
        t.nbytes
        for param, state in optimizer.state.items()
        for t in state.values()
        if t.numel() == param.numel()
    )


def stepped(optimizer):
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.randn_like(param)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    "dtype, state_dtype, share",
    [
        (torch.float32, "auto", 1 / 2),
        (torch.float32, "bfloat16", 1 / 4),
        (torch.float64, "auto", 1 / 2),
        (torch.bfloat16, "auto", 1),
        (torch.bfloat16, "bfloat16", 1 / 2),
    ],
)
@pytest.mark.parametrize("rule", MATRIX_RULES)
def test_state_beside_adamws(rule, dtype, state_dtype, share, device):
    w = torch.nn.Parameter(torch.randn(24, 40, device=device, dtype=dtype))
    group = {"params": [w], "rule": rule, "state_dtype": state_dtype}
    ours = stepped(erlangen.Equivariant([group], lr=0.1))
    adamw = stepped(torch.optim.AdamW([w], lr=0.1))
    assert state_bytes(adamw) == 2 * w.nbytes
    assert state_bytes(ours) == share * state_bytes(adamw)


def most_allocated(step, device) -> int:
    """Bytes that torch's allocator hands out during a step and takes back until its end."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        assert torch.cuda.memory_allocated() == before
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
    held = most = 0
    for event in trace.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    assert held == 0
    return most


# Scalars, and what tells a kernel of its tensors. These tests hold README's "Memory" to its word.
SMALL = 64 * 1024


@pytest.mark.parametrize(
    "rule, center", [("row_norm", False), ("row_norm", True), ("column_norm", False)]
)
def test_row_and_column_rules_need_little(rule, center, device):
    params = [torch.nn.Parameter(torch.randn(512, 1024, device=device)) for _ in range(4)]
    group = {"params": params, "rule": rule, "center": center}
    optimizer = stepped(erlangen.Equivariant([group], lr=0.1))
    allowed = sum(p.numel() for p in params) / 3 if center else SMALL
    assert most_allocated(optimizer.step, device) <= allowed


@pytest.mark.parametrize("ns_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["standard", "gram"])
@pytest.mark.parametrize("count, m, n", [(1, 256, 1024), (1, 1024, 256), (12, 64, 512)])
def test_polar_rules_need_the_batch_twice(count, m, n, method, ns_dtype, device):
    params = [torch.nn.Parameter(torch.randn(m, n, device=device)) for _ in range(count)]
    options = {"rule": "spectral", "ns_method": method, "ns_dtype": ns_dtype}
    optimizer = stepped(erlangen.Equivariant([{"params": params, **options}], lr=0.1))
    k, size = min(m, n), getattr(torch, ns_dtype).itemsize
    squares = 5 if method == "gram" else 2
    # oneDNN packs one factor of a product in bfloat16, the batch at most.
    batches = 2 + (device.type == "cpu" and ns_dtype == "bfloat16")
    allowed = count * (batches * m * n + squares * k * k) * size
    assert most_allocated(optimizer.step, device) <= allowed + SMALL


def most_of_operations(m, n, rule, beside, ns_method, ns_dtype, **more) -> int:
    """Bytes for each matrix while plain operations compute its direction, with so many copies in
    float32 beside them."""
    k = {"right_spectral": n, "left_spectral": m}.get(rule, min(m, n))
    squares = 5 if ns_method == "gram" else 2
    # The prescaled batch, the normalised one and another in the iteration, with its Gram matrices.
    iteration = (beside + 3) * m * n + squares * k * k
    # The prescaled batch, twice in half precision, and ATen's copies of what it divides and of the
    # quotient in the norm's type.
    division = (beside + 4) * m * n if ns_dtype == "bfloat16" else 0
    # The direction, the prescaled batch, their product, and the same in float64, to be summed.
    norm = (beside + 5) * m * n if "alpha" in more else 0
    return 4 * max(iteration, division, norm)


polar_shapes = pytest.mark.parametrize("count, m, n", [(1, 128, 512), (1, 256, 256), (12, 256, 32)])


@polar_shapes
@pytest.mark.parametrize("ns_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("ns_method", ["standard", "gram"])
@pytest.mark.parametrize(
    "group",
    [
        {"rule": "spectral", "alpha": 1.0},
        {"rule": "right_spectral", "alpha": 0.5, "state_dtype": "bfloat16"},
        {"rule": "left_spectral", "center": True},
        {"rule": "hybrid", "order": "row_then_polar"},
        {"rule": "hybrid", "order": "polar_then_row"},
    ],
    ids=str,
)
def test_rules_that_do_more_than_iterate(group, ns_method, ns_dtype, count, m, n, device):
    """Beside the operations: the batch as the kernel has written it, and what the polar factor is
    taken of where that is another."""
    params = [torch.nn.Parameter(torch.randn(m, n, device=device)) for _ in range(count)]
    group = {"params": params, "ns_method": ns_method, "ns_dtype": ns_dtype, **group}
    optimizer = stepped(erlangen.Equivariant([group], lr=0.1))
    group.pop("params")
    beside = 1 + ("center" in group or group.get("order") == "row_then_polar")
    allowed = count * most_of_operations(m, n, beside=beside, **group) + SMALL
    runs = _C.kernel_count()
    assert most_allocated(optimizer.step, device) <= allowed
    assert _C.kernel_count() == runs + count


@polar_shapes
@pytest.mark.parametrize("ns_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("ns_method", ["standard", "gram"])
@pytest.mark.parametrize("rule", ["spectral", "right_spectral", "left_spectral"])
@pytest.mark.parametrize(
    "more",
    [
        {"momentum_order": "polar_first"},
        {"momentum_order": "polar_first", "alpha": 1.0},
        {"support": "gradient"},
        {"support": "gradient", "state_dtype": "bfloat16", "nesterov": False},
    ],
    ids=str,
)
def test_polar_rules_without_a_kernel(more, rule, ns_method, ns_dtype, count, m, n, device):
    """Beside the operations always: Nesterov's average, or a factor for every entry under
    polar_first, or a momentum of bfloat16 made float32; the updates; and what of several parameters
    is made one tensor."""
    params = [torch.nn.Parameter(torch.randn(m, n, device=device)) for _ in range(count)]
    group = {"rule": rule, "ns_method": ns_method, "ns_dtype": ns_dtype, **more}
    optimizer = stepped(erlangen.Equivariant([{"params": params, **group}], lr=0.1))
    allowed = count * most_of_operations(m, n, beside=2 + (count > 1), **group) + SMALL
    runs = _C.kernel_count()
    assert most_allocated(optimizer.step, device) <= allowed
    assert _C.kernel_count() == runs


@pytest.mark.parametrize("rounding", [False, True])
@pytest.mark.parametrize("rule", ["row_norm", "adamw"])
def test_cautious_and_rounding_without_a_kernel(rule, rounding, device):
    """One parameter at a time, in float32 copies of it."""
    w = torch.nn.Parameter(torch.randn(256, 512, device=device).bfloat16())
    group = {"params": [w], "rule": rule, "decay": "cautious", "stochastic_rounding": rounding}
    if rule != "adamw":
        group["momentum_order"] = "polar_first"
    optimizer = stepped(erlangen.Equivariant([group], lr=0.1))
    # Gradient, update and parameter, and the factors of polar_first.
    beside = 3 + (rule != "adamw")
    # Two signs, their product, which of them are positive (a byte each, and as float32), and what
    # decays. Later that alone, the change, the next value, and of noise 16 tensors in int64 with a
    # quarter of the entries: four words, four new ones, and what these come from.
    allowed = 4 * w.numel() * (beside + (3 + 16 / 2 if rounding else 5 + 1 / 4)) + SMALL
    assert most_allocated(optimizer.step, device) <= allowed


def test_memory_of_a_step_does_not_grow_with_the_model(device):
    """More than is computed at once, 64 Mi elements, takes no more memory."""

    def most(count):
        params = [torch.nn.Parameter(torch.ones(4, 1 << 22, device=device)) for _ in range(count)]
        group = {"params": params, "rule": "spectral", "ns_dtype": "bfloat16", "ns_steps": 1}
        return most_allocated(stepped(erlangen.Equivariant([group], lr=0.1)).step, device)

    assert most(5) == most(4) > most(3)


class Heap:
    """Bytes in use of Python's and of C's memory, and of the device's."""

    def __init__(self):
        self.mallinfo = ctypes.CDLL(None).mallinfo2
        fields = ["arena", "ordblks", "smblks", "hblks", "hblkhd"]
        fields += ["usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]
        self.mallinfo.restype = type(
            "mallinfo2", (ctypes.Structure,), {"_fields_": [(f, ctypes.c_size_t) for f in fields]}
        )

    def used(self) -> int:
        gc.collect()
        info = self.mallinfo()
        device = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
        return info.uordblks + info.hblkhd + device


def model_of_all_rules(device):
    def matrix(*shape):
        return torch.nn.Parameter(torch.randn(*shape, device=device))

    groups = [{"params": [matrix(12, 20), matrix(12, 20)], "rule": rule} for rule in MATRIX_RULES]
    groups += [
        {"params": [matrix(12, 20)], "rule": "row_norm", "center": True},
        {"params": [matrix(12, 20)], "rule": "hybrid", "order": "polar_then_row"},
        {"params": [matrix(12, 20)], "rule": "spectral", "ns_method": "exact"},
        {"params": [matrix(12, 20)], "rule": "spectral", "alpha": 0.5},
        {"params": [matrix(20)], "rule": "adamw"},
    ]
    return erlangen.Equivariant(groups, lr=1e-3)


def test_nothing_grows_over_a_thousand_steps(device):
    optimizer = model_of_all_rules(device)
    heap = Heap()
    for _ in range(50):
        stepped(optimizer)
    blocks, before = sys.getallocatedblocks(), heap.used()
    for _ in range(1000):
        stepped(optimizer)
    # The least that could be left behind in every step is one block, of 16 bytes or more.
    assert heap.used() - before < 1000 * 16
    assert sys.getallocatedblocks() - blocks < 1000
