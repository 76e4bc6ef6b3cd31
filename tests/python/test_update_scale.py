"""update_scale, and the lr_scale that is no longer its name: in groups it is other people's (timm,
MAE, BEiT multiply lr by it), in what version 0.1 saved it is update_scale."""

import copy
import pickle
import warnings

import erlangen
import pytest
import torch
import torch.distributed.checkpoint as dcp
from state_helpers import Picture, gradients, model_of, optimizer_of, run, same_bits
from torch import nn
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict


def parameter():
    return nn.Parameter(torch.randn(8, 6))


def as_of_0_1(groups):
    """These groups as version 0.1 had them."""
    for group in groups:
        group["lr_scale"] = group.pop("update_scale")
    return groups


def steer(optimizer, lr):
    """As timm's Scheduler.update_groups and MAE's lr_sched.py do."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def test_schedulers_that_multiply_by_lr_scale_leave_update_scale_alone():
    model, twin = model_of(), model_of()
    twin.load_state_dict(model.state_dict())
    optimizer, other = optimizer_of(model), optimizer_of(twin)
    assert {group["update_scale"] for group in optimizer.param_groups} > {5.0}
    for step in range(3):
        steer(optimizer, 0.02)
        assert all(
            map(same_bits, run(optimizer, 1, gradients(step)), run(other, 1, gradients(step)))
        )


def test_lr_scale_of_a_group_is_kept_and_changes_nothing():
    """Layers with rates of their own: the scheduler reads lr_scale, the step does not."""
    model, twin = model_of(), model_of()
    twin.load_state_dict(model.state_dict())
    groups = erlangen.param_groups(model)
    for depth, group in enumerate(groups):
        group["lr_scale"], group["update_scale"] = 0.5**depth, 2.0
    twins = erlangen.param_groups(twin)
    for depth, group in enumerate(twins):
        group["lr"], group["update_scale"] = 0.02 * 0.5**depth, 2.0
    optimizer, other = erlangen.Equivariant(groups, lr=0.02), erlangen.Equivariant(twins)
    steer(optimizer, 0.02)
    assert all(map(same_bits, run(optimizer, 2, gradients()), run(other, 2, gradients())))
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    for depth, group in enumerate(optimizer.param_groups):
        assert (group["lr_scale"], group["update_scale"]) == (0.5**depth, 2.0)


def test_one_warning_for_groups_of_ones_own_with_lr_scale():
    groups = [{"params": [parameter()], "rule": "spectral", "lr_scale": 2.0} for _ in range(3)]
    with pytest.warns(UserWarning, match="update_scale") as caught:
        optimizer = erlangen.Equivariant(groups)
    assert len(caught) == 1 and "param_groups[0] has lr_scale" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert [group["update_scale"] for group in optimizer.param_groups] == [1.0] * 3

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.add_param_group({**groups[0], "params": [parameter()]})  # it has been said
        both = {"rule": "spectral", "lr_scale": 2.0, "update_scale": 1.0}
        erlangen.Equivariant([{"params": [parameter()], **both}])
        erlangen.Muon([{"params": [parameter()], "lr_scale": 2.0}])


@pytest.mark.parametrize("make", [erlangen.Equivariant, erlangen.Muon])
def test_lr_scale_as_an_argument_is_refused_with_the_new_name(make):
    with pytest.raises(ValueError, match="'lr_scale'.*called 'update_scale'"):
        make([{"params": [parameter()], "rule": "spectral"}], lr_scale=2.0)


def in_training():
    torch.manual_seed(0)
    model = model_of()
    optimizer = erlangen.Equivariant(
        erlangen.param_groups(model, {"embedding": {"update_scale": 3.0}}), lr=0.02
    )
    run(optimizer, 2, gradients())
    return model, optimizer


def test_checkpoint_of_0_1():
    model, optimizer = in_training()
    before = Picture(optimizer)
    old = copy.deepcopy(optimizer.state_dict())
    as_of_0_1(old["param_groups"])
    twin = model_of()
    twin.load_state_dict(model.state_dict())
    other = optimizer_of(twin)
    other.load_state_dict(old)
    assert "lr_scale" in old["param_groups"][0]  # the caller's dict is the caller's
    assert "lr_scale" not in other.param_groups[0]
    Picture(other).assert_same_tensors(before)
    assert [group["update_scale"] for group in other.param_groups] == [
        group["update_scale"] for group in optimizer.param_groups
    ]
    assert other.param_groups[0]["update_scale"] == 3.0
    assert all(map(same_bits, run(optimizer, 2, gradients(5)), run(other, 2, gradients(5))))


def test_pickle_of_0_1():
    _, optimizer = in_training()
    state = copy.deepcopy(optimizer.__getstate__())
    as_of_0_1([state["defaults"], *state["param_groups"]])
    old = copy.copy(optimizer)
    old.__setstate__(state)
    assert old.param_groups[0]["update_scale"] == 3.0 and "lr_scale" not in old.param_groups[0]
    assert "lr_scale" not in old.defaults
    loaded = pickle.loads(pickle.dumps(old))
    expected = run(optimizer, 2, gradients(5))
    assert all(map(same_bits, expected, run(loaded, 2, gradients(5))))


def test_distributed_checkpoint_of_0_1(tmp_path):
    """Its planner asks for all keys of today; allow_partial_load leaves the missing as they are."""
    model, optimizer = in_training()
    states = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    as_of_0_1(states["optimizer"]["param_groups"])
    dcp.save(states, checkpoint_id=tmp_path)
    before = Picture(optimizer)

    model, other = in_training()
    run(other, 1, gradients(3))
    states = dict(zip(("model", "optimizer"), get_state_dict(model, other), strict=True))
    dcp.load(states, checkpoint_id=tmp_path, planner=DefaultLoadPlanner(allow_partial_load=True))
    set_state_dict(
        model, other, model_state_dict=states["model"], optim_state_dict=states["optimizer"]
    )
    Picture(other).assert_same_tensors(before)
    assert other.param_groups[0]["update_scale"] == 3.0
    assert all(map(same_bits, run(optimizer, 2, gradients(5)), run(other, 2, gradients(5))))
