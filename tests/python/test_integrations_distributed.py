"""Several processes on Gloo: DDP, and what FSDP1 and DeepSpeed's ZeRO make of parameters."""

import erlangen
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from rule_helpers import one_thread  # noqa: F401  (as the processes: torch adds up otherwise with more)
from state_helpers import Picture, model_of, raises, same_bits, values
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
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


def one_process():
    """The same steps with the average of both halves' gradients."""
    model = model_from()
    optimizer = erlangen.Equivariant(model, **OPTIONS)
    losses = [[], []]
    for halves in zip(batches(0), batches(1), strict=True):
        optimizer.zero_grad()
        for rank, batch in enumerate(halves):
            loss = loss_of(model, batch)
            (loss / WORLD).backward()
            losses[rank].append(loss.item())
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return losses, tensors(optimizer)


@pytest.mark.parametrize("case", ["ddp", "ddp, resumed"])
def test_ddp(case, ranks):
    losses, expected = one_process()
    for rank in range(WORLD):
        assert ranks[rank][case]["losses"] == losses[rank]
        assert_same_run(ranks[rank][case], expected)


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
