"""Steps in CUDA graphs, whose replays equal eager steps to the bit, and on streams and devices that
are not the current ones. A replay sees new gradients, rates and decays only through the tensors
that it was captured with."""

import copy
import math
import warnings

import erlangen
import harness
import pytest
import torch
from conftest import needs_gpu
from erlangen import _C
from state_helpers import (
    Picture,
    gradients,
    loss_of,
    model_of,
    optimizer_of,
    params_of,
    raises,
    run,
    same_bits,
    values,
)
from torch import nn

CASES = {
    "spectral": {"rule": "spectral"},
    "spectral gram": {"rule": "spectral", "ns_method": "gram"},
    "spectral standard": {"rule": "spectral", "ns_method": "standard", "ns_dtype": "float32"},
    "spectral polar_first": {"rule": "spectral", "momentum_order": "polar_first", "alpha": 1.0},
    "spectral heads": {"rule": "spectral", "layout": [{"heads": 2, "dim": -2}]},
    "spectral bfloat16 state": {"rule": "spectral", "state_dtype": "bfloat16"},
    "muon eps": {"rule": "spectral", "ns_eps": 1e-7},
    "right_spectral": {"rule": "right_spectral", "alpha": 1.0},
    "left_spectral": {"rule": "left_spectral", "center": True},
    "row_norm": {"rule": "row_norm"},
    "row_norm centered": {"rule": "row_norm", "center": True},
    "row_norm support": {"rule": "row_norm", "support": "gradient"},
    "column_norm": {"rule": "column_norm", "maximize": True},
    "hybrid": {"rule": "hybrid", "update_scale": 3.0},
    "hybrid polar_then_row": {"rule": "hybrid", "order": "polar_then_row"},
    "hybrid cautious": {"rule": "hybrid", "decay": "cautious"},
    "hybrid rounded": {"rule": "hybrid", "stochastic_rounding": True, "seed": 5},
    "adamw": {"rule": "adamw"},
    "adamw update_scale": {"rule": "adamw", "update_scale": 0.3},
    "adamw cautious": {"rule": "adamw", "decay": "cautious"},
    "adamw rounded": {"rule": "adamw", "stochastic_rounding": True},
}
IN_TENSORS = pytest.mark.parametrize("decay_in_tensor", [False, True], ids=["lr", "lr, decay"])


def dtype_of(options) -> torch.dtype:
    return torch.bfloat16 if options.get("stochastic_rounding") else torch.float32


class Twin:
    """Parameters with gradients that stay in place, and an optimizer that can be captured."""

    def __init__(self, options, device="cuda", lr=0.02, decay_in_tensor=False, **more):
        torch.manual_seed(0)
        dtype = dtype_of(options)
        self.params = [
            nn.Parameter(torch.randn(shape).to(device, dtype)) for shape in ((16, 8), (8, 16))
        ]
        for p in self.params:
            p.grad = torch.zeros_like(p)
        self.lr = torch.tensor(lr, device=device)
        self.decay = torch.tensor(0.1, device=device)
        decay = self.decay if decay_in_tensor else 0.1
        self.optimizer = erlangen.Equivariant(
            [{"params": self.params, **options}],
            **{"lr": self.lr, "weight_decay": decay, "capturable": True, **more},
        )

    def fill(self, seed, factor=1.0):
        generator = gradients(seed)
        for p in self.params:
            p.grad.copy_(torch.randn(p.shape, generator=generator) * factor)

    def warm_up(self):
        with harness.side_stream():
            for seed in range(3):
                self.fill(seed)
                self.optimizer.step()

    def captured(self) -> torch.cuda.CUDAGraph:
        self.warm_up()
        before = Picture(self.optimizer)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.optimizer.step()
        Picture(self.optimizer).assert_same(before)  # recorded, not run
        return graph


def assert_same(twin: Twin, other: Twin):
    Picture(twin.optimizer).assert_same_tensors(Picture(other.optimizer))


# ---- Graphs


@needs_gpu
@IN_TENSORS
@pytest.mark.parametrize("case", CASES)
def test_replays_equal_eager_steps(case, decay_in_tensor):
    captured, eager = (Twin(CASES[case], decay_in_tensor=decay_in_tensor) for _ in range(2))
    graph = captured.captured()
    eager.warm_up()
    assert_same(captured, eager)
    for step, (rate, decay) in enumerate([(0.02, 0.1), (0.5, 0.7), (0.0, 0.7), (0.125, 2.0)]):
        for twin in (captured, eager):
            twin.lr.fill_(rate)
            twin.decay.fill_(decay)  # of no effect where it is not the group's
            twin.fill(10 + step)
        before = values(captured.params)
        graph.replay()
        eager.optimizer.step()
        assert_same(captured, eager)
        assert all(map(same_bits, before, captured.params)) == (rate == 0.0)


@needs_gpu
@IN_TENSORS
@pytest.mark.parametrize("case", CASES)
def test_tensors_equal_numbers(case, decay_in_tensor):
    """One step from the same start: a few roundings of the update and of the value. The fused
    kernels take it from tensors too."""
    rule = CASES[case]["rule"]
    fused = rule != "adamw" and "momentum_order" not in CASES[case]
    tensor = Twin(CASES[case], lr=0.25, decay_in_tensor=decay_in_tensor)
    tensor.decay.fill_(2.0)
    number = Twin(CASES[case])
    number.optimizer.param_groups[0].update(lr=0.25, weight_decay=2.0 if decay_in_tensor else 0.1)
    start = values(tensor.params)
    for twin in (tensor, number):
        twin.fill(1)
        count = _C.kernel_count()
        twin.optimizer.step()
        assert not fused or _C.kernel_count() == count + 2
    unit = torch.finfo(dtype_of(CASES[case])).eps
    for p, q, before in zip(tensor.params, number.params, start, strict=True):
        size = before.abs() + (q - before).abs()
        assert ((p - q).abs() <= 8 * unit * size.max()).all()
        assert not same_bits(q, before)


@needs_gpu
@pytest.mark.parametrize("case", CASES)
def test_overflow_in_a_graph(case):
    """found_inf and grad_scale as GradScaler would set them, changed between replays."""
    captured, plain = Twin(CASES[case]), Twin(CASES[case])
    found_inf, grad_scale = torch.zeros((), device="cuda"), torch.ones((), device="cuda")
    plain_scale = torch.ones((), device="cuda")
    captured.optimizer.found_inf, captured.optimizer.grad_scale = found_inf, grad_scale
    plain.optimizer.grad_scale = plain_scale  # the same operations, so the same bits
    graph = captured.captured()
    plain.warm_up()
    assert_same(captured, plain)
    for step in range(3):
        before = Picture(captured.optimizer)
        captured.fill(50 + step, math.inf if step % 2 else math.nan)
        found_inf.fill_(1.0)
        graph.replay()
        Picture(captured.optimizer).assert_same(before)
        captured.fill(10 + step, 1024.0)
        grad_scale.fill_(1024.0)
        found_inf.zero_()
        graph.replay()
        plain.fill(10 + step)
        plain.optimizer.step()
        assert_same(captured, plain)


@needs_gpu
def test_grad_scaler_in_a_graph():
    """The whole of it captured: the check of the gradients, the step and the scale's update."""
    twin = Twin({"rule": "spectral"})
    other = [nn.Parameter(torch.randn(8, device="cuda"))]
    other[0].grad = torch.zeros_like(other[0])
    twin.optimizer.add_param_group({"params": other, "rule": "adamw"})
    twin.params = params_of(twin.optimizer)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    scaler.scale(torch.zeros((), device="cuda"))  # creates the scale

    def step():
        scaler.step(twin.optimizer)
        scaler.update()

    twin.warm_up()
    with harness.side_stream():
        twin.fill(4, 2.0**10)
        step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    before = Picture(twin.optimizer)
    twin.fill(5, 2.0**10)
    twin.params[0].grad[0, 0] = math.inf
    graph.replay()
    Picture(twin.optimizer).assert_same(before)
    assert scaler.get_scale() == 2.0**9
    twin.fill(6, 2.0**9)
    graph.replay()
    assert scaler.get_scale() == 2.0**9
    for p, q in zip(twin.params, before.params, strict=True):
        assert p.isfinite().all() and not same_bits(p, q)
    assert twin.optimizer.state[other[0]]["step"].item() == before.states[2]["step"].item() + 1


@needs_gpu
@pytest.mark.parametrize("capturable", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_nothing_waits_for_the_device(case, capturable):
    twin = Twin(CASES[case], capturable=capturable)
    twin.optimizer.found_inf = torch.zeros((), device="cuda")
    twin.optimizer.grad_scale = torch.ones((), device="cuda")
    twin.warm_up()  # cuBLAS may wait when it starts
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    try:
        torch.cuda.set_sync_debug_mode("error")
        twin.optimizer.step()
        del twin.optimizer.found_inf, twin.optimizer.grad_scale
        twin.optimizer.step()
        twin.optimizer.param_groups[0]["lr"] = 0.5
        twin.optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def refused_in_capture(twin, words):
    before = Picture(twin.optimizer)
    twin.fill(7)

    def capture():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the graph is empty
            with torch.cuda.graph(torch.cuda.CUDAGraph()):
                twin.optimizer.step()

    raises(ValueError, words, capture)
    torch.cuda.synchronize()
    Picture(twin.optimizer).assert_same(before)
    twin.optimizer.step()
    assert not all(map(same_bits, before.params, twin.params))


@needs_gpu
@pytest.mark.parametrize("case", ["spectral", "row_norm", "adamw", "hybrid rounded"])
def test_refused_in_capture(case):
    refused_in_capture(Twin(CASES[case]), ["captured", "one step before"])
    twin = Twin(CASES[case], capturable=False)
    twin.warm_up()
    refused_in_capture(twin, ["captured", "capturable=False"])


@needs_gpu
@pytest.mark.parametrize("case", ["spectral", "adamw", "hybrid rounded"])
def test_capture_after_load(case):
    """A loaded state is a state: with no step in between, from a checkpoint on the CPU."""
    first, second = Twin(CASES[case]), Twin(CASES[case])
    first.warm_up()
    second.warm_up()
    checkpoint = copy.deepcopy(first.optimizer.state_dict())
    for state in checkpoint["state"].values():
        for name in state:
            state[name] = state[name].cpu()
    second.optimizer.load_state_dict(checkpoint)
    second.optimizer.param_groups[0]["lr"] = second.lr
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        second.optimizer.step()
    for twin in (first, second):
        twin.fill(9)
    first.optimizer.step()
    graph.replay()
    assert_same(first, second)


# ---- Streams and devices


@needs_gpu
@pytest.mark.parametrize("case", CASES)
def test_side_stream(case):
    """The step runs on the current stream: there it finds gradients that come late."""
    late, plain = Twin(CASES[case]), Twin(CASES[case])
    late.warm_up()
    plain.warm_up()
    torch.cuda.synchronize()
    fresh = [torch.randn(p.shape, generator=gradients(8)).to(p) for p in late.params]
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)  # cycles
        for p, g in zip(late.params, fresh, strict=True):
            p.grad.copy_(g, non_blocking=True)
        late.optimizer.step()
    for p, g in zip(plain.params, fresh, strict=True):
        p.grad.copy_(g)
    plain.optimizer.step()
    side.synchronize()
    assert_same(late, plain)


@needs_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second CUDA device")
@pytest.mark.parametrize("case", CASES)
def test_second_gpu(case):
    """Parameters of a GPU that is not the current one, with rates and overflow on the first."""
    far, near = Twin(CASES[case], device="cuda:1"), Twin(CASES[case], device="cuda:0")
    far.lr = torch.tensor(0.02, device="cuda:0")
    far.optimizer.param_groups[0]["lr"] = far.lr
    for twin in (far, near):
        twin.optimizer.found_inf = torch.zeros((), device="cuda:0")
        for seed in range(2):
            twin.fill(seed)
            torch.cuda.synchronize(0)
            torch.cuda.synchronize(1)
            twin.optimizer.step()
            assert torch.cuda.current_device() == 0
    torch.cuda.synchronize(1)
    same_gpu = torch.cuda.get_device_name(0) == torch.cuda.get_device_name(1)
    for p, q in zip(far.params, near.params, strict=True):
        assert p.device.index == 1
        if same_gpu:
            assert same_bits(p, q)
        else:
            torch.testing.assert_close(p.cpu(), q.cpu(), rtol=1e-2, atol=1e-2)


@needs_gpu
def test_model_on_two_kinds_of_device():
    """Each part of a model takes the step where it is."""
    mixed, alone = model_of(), model_of("cuda")
    alone.load_state_dict(mixed.state_dict())
    mixed[1].to("cuda")
    optimizers = [optimizer_of(model) for model in (mixed, alone)]
    for optimizer in optimizers:
        run(optimizer, 2, gradients())
    assert all(map(same_bits, mixed[1].parameters(), alone[1].parameters()))


@needs_gpu
def test_training_in_a_graph():
    """Forward, backward and step in one graph lower the loss."""
    model = model_of("cuda")
    optimizer = optimizer_of(model, capturable=True, lr=torch.tensor(0.02, device="cuda"))

    def train():
        optimizer.zero_grad(set_to_none=False)
        model(tokens).square().mean().backward()
        optimizer.step()

    tokens = torch.arange(7, device="cuda")
    replay = harness.captured(train)
    before = loss_of(model).item()
    for _ in range(20):
        replay()
    assert loss_of(model).item() < 0.7 * before
