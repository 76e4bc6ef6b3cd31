"""Several processes on Gloo: DDP, ZeroRedundancyOptimizer, and what FSDP1 and DeepSpeed's ZeRO make
of parameters."""

import erlangen
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from integration_helpers import Text, language_model
from rule_helpers import one_thread  # noqa: F401
from state_helpers import Picture, params_of, raises, same_bits, values
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader

WORLD, STEPS, RESUME_AT = 2, 4, 2
OPTIONS = {"lr": 0.01, "weight_decay": 0.1}


def spawned(target, folder, *args):
    """Runs target(rank, folder, *args) in a group of processes; what each has saved."""
    torch.multiprocessing.spawn(_process, (target, folder, *args), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def _process(rank, target, folder, *args):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    init = f"file://{folder / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=WORLD)
    try:
        torch.save(target(rank, folder, *args), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def batches(rank):
    """Each process has its own half of the data."""
    return list(DataLoader(Text(), 2))[rank::WORLD][:STEPS]


def gradients(model, batch):
    return torch.autograd.grad(model(**batch).loss, list(model.parameters()))


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
    model = language_model()
    wrapped = DistributedDataParallel(model)
    optimizer = erlangen.Equivariant(wrapped if groups_from == "wrapped" else model, **OPTIONS)
    losses = []
    for step, batch in enumerate(batches(rank)):
        if resumed and step == RESUME_AT:  # from the first process's checkpoint, as users do
            if rank == 0:
                torch.save((model.state_dict(), optimizer.state_dict()), folder / "checkpoint")
            dist.barrier()
            saved = torch.load(folder / "checkpoint")
            model = language_model(seed=1)
            wrapped = DistributedDataParallel(model)
            optimizer = erlangen.Equivariant(wrapped, **OPTIONS)
            model.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
        optimizer.zero_grad()
        loss = wrapped(**batch).loss
        loss.backward()
        clip_grad_norm_(wrapped.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return {"losses": losses, **tensors(optimizer)}


def one_process():
    """The same steps with the average of both halves' gradients."""
    model = language_model()
    optimizer = erlangen.Equivariant(model, **OPTIONS)
    losses = [[], []]
    for halves in zip(batches(0), batches(1), strict=True):
        optimizer.zero_grad()
        for rank, batch in enumerate(halves):
            loss = model(**batch).loss
            (loss / WORLD).backward()
            losses[rank].append(loss.item())
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return losses, tensors(optimizer)


@pytest.mark.parametrize("groups_from, resumed", [("model", False), ("wrapped", True)])
def test_ddp(groups_from, resumed, tmp_path, one_thread):  # noqa: F811
    ranks = spawned(ddp, tmp_path, groups_from, resumed)
    losses, expected = one_process()
    for rank in range(WORLD):
        assert ranks[rank]["losses"] == losses[rank]
        assert_same_run(ranks[rank], expected)


# ---- Sharded state that keeps whole parameters


def zero_redundancy(rank, folder):
    model = DistributedDataParallel(language_model())
    optimizer = ZeroRedundancyOptimizer(
        erlangen.param_groups(model), optimizer_class=erlangen.Equivariant, **OPTIONS
    )
    for batch in batches(rank):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    mine = len(optimizer.optim.state)
    assert 0 < mine < len(params_of(optimizer))  # the other process has the rest
    return {"params": values(params_of(optimizer))}


def test_zero_redundancy_optimizer(tmp_path, one_thread):  # noqa: F811
    ranks = spawned(zero_redundancy, tmp_path)
    _, expected = one_process()
    for rank in range(WORLD):
        assert all(map(same_bits, ranks[rank]["params"], expected["params"]))


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

    model = wrapped(language_model())
    said = {"groups": message(lambda: erlangen.Equivariant(model, **OPTIONS))}
    said["by hand"] = message(
        lambda: erlangen.Equivariant([{"params": list(model.parameters()), "rule": "spectral"}])
    )

    model = language_model()
    optimizer = erlangen.Equivariant(model, **OPTIONS)
    model = wrapped(model)
    before = values(model.parameters())
    model(**batches(rank)[0]).loss.backward()
    if use_orig_params:  # else the optimizer holds tensors that the model no longer has
        said["step"] = message(optimizer.step)
        assert all(map(same_bits, before, model.parameters()))
        assert not optimizer.state
    return said


@pytest.mark.parametrize("use_orig_params", [True, False])
def test_fsdp1(use_orig_params, tmp_path):
    for said in spawned(fsdp1, tmp_path, use_orig_params):
        assert len(said) == 2 + use_orig_params
        for text in said.values():
            assert "FSDP1" in text and "DDP" in text, text


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])


def test_deepspeed_zero():
    """Stages 1 and 2 put one flat partition of all its tensors in the place of a group's."""
    model = language_model()
    optimizer = erlangen.Equivariant(model, **OPTIONS)
    model(**batches(0)[0]).loss.backward()
    for group in optimizer.param_groups:
        partition = nn.Parameter(flat([p.detach() for p in group["params"]]))
        partition.grad = flat([p.grad for p in group["params"]])
        group["params"] = [partition]
    before = Picture(optimizer)
    raises(ValueError, ["param_groups[0]", "two dimensions", "ZeRO", "DDP"], optimizer.step)
    Picture(optimizer).assert_same(before)


def test_deepspeed_zero3():
    """Stage 3 leaves an empty tensor of each parameter, with what it needs to gather it again."""
    model = language_model()
    for i, p in enumerate(model.parameters()):
        p.ds_id, p.ds_shape, p.data = i, p.shape, torch.empty(0)
    raises(ValueError, ["ZeRO-3", "embed_tokens", "DDP"], lambda: erlangen.Equivariant(model))
