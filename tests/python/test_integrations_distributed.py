"""Several processes on Gloo: DDP, torch's optimizers that wrap ours, FSDP1 and DeepSpeed's ZeRO."""

import copy

import erlangen
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from rule_helpers import one_thread  # noqa: F401  (as the processes: torch adds up otherwise with more)
from state_helpers import Picture, model_of, raises, same_bits, values
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import (
    PostLocalSGDState,
    post_localSGD_hook,
)
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.optim import PostLocalSGDOptimizer, ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

WORLD, STEPS, RESUME_AT = 2, 4, 2
OPTIONS = {"lr": 0.02, "weight_decay": 0.1}


def model_from(seed=0):
    torch.manual_seed(seed)
    return model_of()


def batches(rank):
    """Each process has its own tokens."""
    generator = torch.Generator().manual_seed(rank)
    return [torch.randint(7, (5,), generator=generator) for _ in range(STEPS)]


def loss_of(model, batch):
    return model(batch).square().mean()


def tensors(optimizer):
    picture = Picture(optimizer)
    return {"params": picture.params, "states": picture.states}


def assert_same_run(a, b):
    assert all(map(same_bits, a["params"], b["params"]))
    for one, other in zip(a["states"], b["states"], strict=True):
        assert one.keys() == other.keys()
        assert all(same_bits(one[key], other[key]) for key in one)


# ---- DDP


def ddp(rank, folder, groups_from, resumed):
    model = model_from()
    wrapped = DistributedDataParallel(model)
    optimizer = erlangen.Equivariant(wrapped if groups_from == "wrapped" else model, **OPTIONS)
    losses = []
    for step, batch in enumerate(batches(rank)):
        if resumed and step == RESUME_AT:  # from the first process's checkpoint, as users do
            if rank == 0:
                torch.save((model.state_dict(), optimizer.state_dict()), folder / "checkpoint")
            dist.barrier()
            saved = torch.load(folder / "checkpoint")
            model = model_from(seed=1)
            wrapped = DistributedDataParallel(model)
            optimizer = erlangen.Equivariant(wrapped, **OPTIONS)
            model.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
        optimizer.zero_grad()
        loss = loss_of(wrapped, batch)
        loss.backward()
        clip_grad_norm_(wrapped.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return {"losses": losses, **tensors(optimizer)}


def trained(rate=lambda step: OPTIONS["lr"]):
    """The same steps in one process, with the average of both halves' gradients."""
    model = model_from()
    optimizer = erlangen.Equivariant(model, **OPTIONS)
    losses = [[], []]
    for step, halves in enumerate(zip(batches(0), batches(1), strict=True)):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.zero_grad()
        for rank, batch in enumerate(halves):
            loss = loss_of(model, batch)
            (loss / WORLD).backward()
            losses[rank].append(loss.item())
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return losses, optimizer, model


@pytest.mark.parametrize("case", ["ddp", "ddp, resumed"])
def test_ddp(case, ranks):
    losses, optimizer, _ = trained()
    for rank in range(WORLD):
        assert ranks[rank][case]["losses"] == losses[rank]
        assert_same_run(ranks[rank][case], tensors(optimizer))


# ---- ZeroRedundancyOptimizer: each process has some of each group's parameters, and their state


def rate_of(step):
    return OPTIONS["lr"] / (step + 1)


def zero_of(model, **more):
    groups = erlangen.param_groups(model)
    return ZeroRedundancyOptimizer(groups, erlangen.Equivariant, **OPTIONS, **more)


def consolidated(optimizer, rank):
    optimizer.consolidate_state_dict()
    return optimizer.state_dict() if rank == 0 else None


def zero(rank, folder, as_bucket_view, through_plain):
    model = model_from()
    wrapped = DistributedDataParallel(model)
    optimizer = zero_of(model, parameters_as_bucket_view=as_bucket_view)
    losses = []
    for step, batch in enumerate(batches(rank)):
        if step == RESUME_AT:
            state = consolidated(optimizer, rank)
            if rank == 0:
                if through_plain:  # what one process saves is taken up, and the other way round
                    plain = erlangen.Equivariant(model_from(), **OPTIONS)
                    plain.load_state_dict(state)
                    state = plain.state_dict()
                torch.save((model.state_dict(), state), folder / "zero")
            dist.barrier()
            saved = torch.load(folder / "zero")
            model = model_from(seed=1)
            model.load_state_dict(saved[0])
            wrapped = DistributedDataParallel(model)
            optimizer = zero_of(model, parameters_as_bucket_view=as_bucket_view)
            optimizer.load_state_dict(saved[1])
            dist.barrier()
        for group in optimizer.param_groups:
            group["lr"] = rate_of(step)
        optimizer.zero_grad()
        loss = loss_of(wrapped, batch)
        loss.backward()
        clip_grad_norm_(wrapped.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return {
        "losses": losses,
        "params": dict(model.named_parameters()),
        "state": consolidated(optimizer, rank),
        "held": [len(g["params"]) for g in optimizer.optim.param_groups],
        "explained": optimizer.optim.explain(full=True),
    }


@pytest.mark.parametrize("case", ["zero", "zero, bucket views"])
def test_zero_redundancy_optimizer(case, ranks):
    losses, optimizer, model = trained(rate_of)
    for rank in range(WORLD):
        result = ranks[rank][case]
        assert result["losses"] == losses[rank]
        for name, p in model.named_parameters():
            assert same_bits(p, result["params"][name]), name
    held = [ranks[rank][case]["held"] for rank in range(WORLD)]
    groups = optimizer.param_groups
    assert [sum(n) for n in zip(*held, strict=True)] == [len(g["params"]) for g in groups]
    assert 0 in held[0] + held[1] and any(a and b for a, b in zip(*held, strict=True))

    found, expected = ranks[0][case]["state"], optimizer.state_dict()
    assert found["param_groups"] == expected["param_groups"]
    assert found["state"].keys() == expected["state"].keys()
    for index, entry in expected["state"].items():
        assert entry.keys() == found["state"][index].keys()
        assert all(same_bits(entry[key], found["state"][index][key]) for key in entry)


def test_no_process_calls_a_parameter_by_anothers_name(ranks):
    shapes = {n: "×".join(map(str, p.shape)) for n, p in model_from().named_parameters()}
    for rank in range(WORLD):
        rows = [row.split() for row in ranks[rank]["zero"]["explained"].splitlines()[1:]]
        assert len(rows) == sum(ranks[rank]["zero"]["held"])
        for name, shape, *_ in rows:
            assert name == "group" or shapes[name] == shape


def zero_thaws(rank, folder):
    """Groups added later, by each process, with the parameters of a layer that was frozen."""
    model, optimizer = thawing(zero_of, lambda p: average(p.grad), batches(rank))
    return {"params": values(model.parameters()), "state": consolidated(optimizer, rank)}


def average(tensor):
    dist.all_reduce(tensor)
    tensor /= WORLD


def thawing(optimizer_from, averaged, data):
    """The run in which a layer thaws; data: for each step a batch, or each process's."""
    model = model_from()
    model[3].requires_grad_(False)
    optimizer = optimizer_from(model)
    for step, batch in enumerate(data):
        if step == RESUME_AT:
            new = model[3].requires_grad_(True).weight
            (group,) = [
                g for g in erlangen.param_groups(model) if any(p is new for p in g["params"])
            ]
            optimizer.add_param_group({**group, "params": [new], "param_names": ["3.weight"]})
        optimizer.zero_grad()
        for one in batch if isinstance(batch, tuple) else [batch]:
            loss_of(model, one).backward()
        for p in model.parameters():
            if p.grad is not None:
                averaged(p)
        optimizer.step()
    return model, optimizer


def test_zero_takes_groups_later(ranks):
    def halved(p):
        p.grad /= WORLD

    data = list(zip(batches(0), batches(1), strict=True))
    model, optimizer = thawing(lambda m: erlangen.Equivariant(m, **OPTIONS), halved, data)
    for rank in range(WORLD):
        found = ranks[rank]["zero, thawing"]["params"]
        assert all(map(same_bits, model.parameters(), found))
    state = ranks[0]["zero, thawing"]["state"]
    assert state["param_groups"] == optimizer.state_dict()["param_groups"]


# ---- PostLocalSGDOptimizer: each process steps alone after a while, and parameters are averaged

WARMUP, PERIOD = 1, 2


def post_local_sgd(rank, folder):
    model = model_from()
    wrapped = DistributedDataParallel(model)
    own, _ = dist.new_subgroups(group_size=1)
    hook_state = PostLocalSGDState(None, own, start_localSGD_iter=WARMUP)
    wrapped.register_comm_hook(hook_state, post_localSGD_hook)
    optimizer = post_local_sgd_of(model)
    for step, batch in enumerate(batches(rank)):
        if step == RESUME_AT:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = post_local_sgd_of(model)
            optimizer.load_state_dict(state)
        optimizer.zero_grad()
        loss_of(wrapped, batch).backward()
        optimizer.step()
    return tensors(optimizer.optim)


def post_local_sgd_of(model):
    averager = PeriodicModelAverager(period=PERIOD, warmup_steps=WARMUP)
    return PostLocalSGDOptimizer(erlangen.Equivariant(model, **OPTIONS), averager)


def test_post_local_sgd(ranks):
    models = [model_from() for _ in range(WORLD)]
    optimizers = [erlangen.Equivariant(model, **OPTIONS) for model in models]
    averaged = []
    for step, halves in enumerate(zip(batches(0), batches(1), strict=True)):
        for model, batch in zip(models, halves, strict=True):
            model.zero_grad()
            loss_of(model, batch).backward()
        pairs = list(zip(*(model.parameters() for model in models), strict=True))
        if step < WARMUP:
            for pair in pairs:
                mean = sum(p.grad / WORLD for p in pair)
                for p in pair:
                    p.grad = mean.clone()
        for optimizer in optimizers:
            optimizer.step()
        if step >= WARMUP and (step - WARMUP) % PERIOD == 0:
            averaged.append(step)
            for pair in pairs:
                mean = sum(p.detach() / WORLD for p in pair)
                for p in pair:
                    p.data.copy_(mean)
    assert averaged == [1, 3]
    for rank in range(WORLD):
        assert_same_run(ranks[rank]["post-local SGD"], tensors(optimizers[rank]))
    states = [ranks[rank]["post-local SGD"]["states"] for rank in range(WORLD)]
    assert not same_bits(states[0][0]["momentum_buffer"], states[1][0]["momentum_buffer"])


# ---- Flattened parameters


def fsdp1(rank, folder, use_orig_params):
    """What the optimizer says of a model that FSDP1 has wrapped, before and after its groups."""

    def message(action):
        with pytest.raises(ValueError) as caught:
            action()
        return str(caught.value)

    def wrapped(model):
        return FullyShardedDataParallel(
            model, device_id=torch.device("cpu"), use_orig_params=use_orig_params
        )

    model = wrapped(model_from())
    said = {"groups": message(lambda: erlangen.Equivariant(model, **OPTIONS))}
    said["by hand"] = message(
        lambda: erlangen.Equivariant([{"params": list(model.parameters()), "rule": "spectral"}])
    )

    model = model_from()
    optimizer = erlangen.Equivariant(model, **OPTIONS)
    model = wrapped(model)
    before = values(model.parameters())
    loss_of(model, batches(rank)[0]).backward()
    if use_orig_params:  # else the optimizer holds tensors that the model no longer has
        said["step"] = message(optimizer.step)
        assert all(map(same_bits, before, model.parameters()))
        assert not optimizer.state
    return said


@pytest.mark.parametrize("case, count", [("fsdp1", 3), ("fsdp1, flat", 2)])
def test_fsdp1(case, count, ranks):
    for rank in range(WORLD):
        said = ranks[rank][case]
        assert len(said) == count
        for text in said.values():
            assert "FSDP1" in text and "DDP" in text, text


# ---- The processes

TARGETS = {
    "ddp": lambda *a: ddp(*a, groups_from="model", resumed=False),
    "ddp, resumed": lambda *a: ddp(*a, groups_from="wrapped", resumed=True),
    "zero": lambda *a: zero(*a, as_bucket_view=False, through_plain=False),
    "zero, bucket views": lambda *a: zero(*a, as_bucket_view=True, through_plain=True),
    "zero, thawing": zero_thaws,
    "post-local SGD": post_local_sgd,
    "fsdp1": lambda *a: fsdp1(*a, use_orig_params=True),
    "fsdp1, flat": lambda *a: fsdp1(*a, use_orig_params=False),
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each process has brought back: started once, since starting takes the time."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(_process, (folder,), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def _process(rank, folder):
    torch.set_num_threads(1)
    init = f"file://{folder / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=WORLD)
    try:
        results = {name: target(rank, folder) for name, target in TARGETS.items()}
    finally:
        dist.destroy_process_group()
    torch.save(results, folder / f"{rank}.pt")


# ---- As DeepSpeed does


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])


def test_deepspeed_zero():
    """Stages 1 and 2 put one flat partition of all its tensors in the place of a group's."""
    model = model_from()
    optimizer = erlangen.Equivariant(model, **OPTIONS)
    loss_of(model, batches(0)[0]).backward()
    for group in optimizer.param_groups:
        partition = nn.Parameter(flat([p.detach() for p in group["params"]]))
        partition.grad = flat([p.grad for p in group["params"]])
        group["params"] = [partition]
    before = Picture(optimizer)
    raises(ValueError, ["param_groups[0]", "two dimensions", "ZeRO", "DDP"], optimizer.step)
    Picture(optimizer).assert_same(before)


def test_deepspeed_zero3():
    """Stage 3 leaves an empty tensor of each parameter, with what it needs to gather it again."""
    model = model_from()
    for i, p in enumerate(model.parameters()):
        p.ds_id, p.ds_shape, p.data = i, p.shape, torch.empty(0)
    raises(ValueError, ["ZeRO-3", "0.weight", "DDP"], lambda: erlangen.Equivariant(model))
