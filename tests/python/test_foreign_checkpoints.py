"""Checkpoints of other groupings, of wrappers and of other people's optimizers."""

import copy
import io

import erlangen
import pytest
import torch
import torch.distributed.checkpoint as dcp
from state_helpers import Picture, gradients, params_of, raises, run, same_bits
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict


def through_file(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


# ---- Momentum that is a sum

# Groups of Muons in user files, with the momentum m ← β·m + g, which is 1/(1 − β) times as long.
SUMMED = {
    "Keller Jordan's first": {"lr": 0.02, "momentum": 0.95, "nesterov": True, "ns_steps": 5},
    "with decay": {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95},
    "lr alone": {"lr": 0.02},
    "Moonlight's": {
        "lr": 1e-3,
        "wd": 0.1,
        "momentum": 0.95,
        "nesterov": True,
        "ns_steps": 5,
        "adamw_betas": (0.9, 0.95),
        "adamw_eps": 1e-8,
    },
    "under a scheduler": {"lr": 0.02, "momentum": 0.95, "initial_lr": 0.02},
    "half of torch's": {"lr": 0.02, "momentum": 0.95, "ns_coefficients": (3.4445, -4.775, 2.0315)},
}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("cls", [erlangen.Muon, erlangen.RowNorm])
@pytest.mark.parametrize("options", SUMMED.values(), ids=SUMMED.keys())
def test_summed_momentum_is_refused(options, cls, named):
    p = nn.Parameter(torch.randn(8, 6))
    names = {"param_names": ["w"]} if named else {}
    optimizer = cls([{"params": [p], **names}])
    run(optimizer, 1, gradients())
    before = Picture(optimizer)
    state_dict = {
        "state": {0: {"momentum_buffer": torch.ones(8, 6)}},
        "param_groups": [{"params": [0], **names, **options}],
    }
    raises(
        ValueError,
        ["param_groups[0]", "another optimizer's", "allowed: Equivariant's"],
        lambda: optimizer.load_state_dict(state_dict),
    )
    Picture(optimizer).assert_same(before)


def test_the_reason_is_in_the_message():
    optimizer = erlangen.Muon([nn.Parameter(torch.randn(8, 6))])
    group = {"params": [0], **SUMMED["Keller Jordan's first"]}
    state_dict = {"state": {0: {"momentum_buffer": torch.ones(8, 6)}}, "param_groups": [group]}
    raises(ValueError, ["average", "sum"], lambda: optimizer.load_state_dict(state_dict))


# ---- Groups that are cut another way


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.randn(8, 6)) for _ in range(3))
        self.gain = nn.Parameter(torch.randn(6))


def net():
    torch.manual_seed(0)
    return Net()


def grouped(model, cut, names=True, **options):
    """An optimizer of these groups: strings of parameter names, "abc,gain"."""
    groups = []
    for part in cut:
        params = [getattr(model, name) for name in part.split()]
        rule = "adamw" if part == "gain" else "spectral"
        groups.append({"params": params, "rule": rule})
        if names:
            groups[-1]["param_names"] = part.split()
    return erlangen.Equivariant(groups, **{"lr": 0.02, "weight_decay": 0.1, **options})


def by_name(model, optimizer):
    return {name: optimizer.state[p] for name, p in model.named_parameters()}


def assert_same_states(states, others):
    assert states.keys() == others.keys()
    for name, entries in states.items():
        assert entries.keys() == others[name].keys()
        assert all(same_bits(entries[key], others[name][key]) for key in entries), name


def steps(model, optimizer, count=2, seed=5):
    for step in range(count):
        generator = gradients(seed + step)
        for _, p in sorted(model.named_parameters()):
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


CUTS = [
    ["a b c", "gain"],
    ["gain", "a b c"],
    ["c a b", "gain"],
    ["a", "b", "c", "gain"],
    ["b c", "gain", "a"],
]


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("saved", CUTS[:4], ids=str)
def test_state_goes_by_names(saved, cut):
    """And the run goes on with equal bits, in whatever groups."""
    model, twin = net(), net()
    optimizer = grouped(model, saved)
    steps(model, optimizer)
    twin.load_state_dict(model.state_dict())
    other = grouped(twin, cut, lr=0.5, weight_decay=0.0)
    other.load_state_dict(through_file(optimizer.state_dict()))
    assert [group["param_names"] for group in other.param_groups] == [p.split() for p in cut]
    assert_same_states(by_name(twin, other), by_name(model, optimizer))
    assert all((g["lr"], g["weight_decay"]) == (0.02, 0.1) for g in other.param_groups)
    steps(model, optimizer)
    steps(twin, other)
    assert all(map(same_bits, model.parameters(), twin.parameters()))


def test_options_on_which_the_saved_groups_differ_stay():
    model, twin = net(), net()
    optimizer = grouped(model, ["a", "b c", "gain"])
    optimizer.param_groups[0].update(lr=0.25, mine=1)
    optimizer.param_groups[1].update(mine=2, ours=[3])
    optimizer.param_groups[0]["ours"] = [3]
    other = grouped(twin, ["a b", "c", "gain"], lr=0.5, momentum=0.5)
    other.load_state_dict(optimizer.state_dict())
    both, alone, _ = other.param_groups
    assert (both["lr"], both["momentum"], both["ours"]) == (0.5, 0.95, [3])
    assert "mine" not in both
    assert (alone["lr"], alone["mine"]) == (0.02, 2)


def test_entries_of_a_scheduler_on_which_the_saved_groups_differ_stay():
    model, twin = net(), net()
    optimizer = grouped(model, ["a", "b c", "gain"])
    optimizer.param_groups[0]["lr"] = 0.25
    torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [0.1, 0.2, 0.3], total_steps=9, cycle_momentum=False
    )
    other = grouped(twin, ["a b", "c", "gain"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(other, 0.5, total_steps=9, cycle_momentum=False)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["max_lr"] == 0.5 and other.param_groups[1]["max_lr"] == 0.2
    steps(twin, other, count=1)
    schedule.step()


def test_names_of_torchs_adamw():
    model, twin = net(), net()
    theirs = torch.optim.AdamW(list(model.named_parameters()), lr=0.02)
    steps(model, theirs)
    twin.load_state_dict(model.state_dict())
    groups = [
        {"params": [(name, getattr(twin, name)) for name in part], "rule": "adamw"}
        for part in (["gain", "b"], ["c", "a"])
    ]
    ours = erlangen.Equivariant(groups, lr=0.5)
    ours.load_state_dict(through_file(theirs.state_dict()))
    assert {group["lr"] for group in ours.param_groups} == {0.02}
    assert_same_states(by_name(twin, ours), by_name(model, theirs))


@pytest.mark.parametrize("names", ["none", "saved", "live", "others", "twice"])
def test_else_by_position(names):
    """As torch: the order counts where names do not say everything."""
    model, twin = net(), net()
    optimizer = grouped(model, ["a b", "c", "gain"], names in ("saved", "others", "twice"))
    steps(model, optimizer)
    other = grouped(twin, ["b a", "c", "gain"], names in ("live", "others", "twice"))
    state_dict = copy.deepcopy(optimizer.state_dict())
    if names == "others":
        state_dict["param_groups"][1]["param_names"] = ["another"]
    if names == "twice":
        state_dict["param_groups"][1]["param_names"] = ["a"]
    other.load_state_dict(state_dict)
    for p, q in zip(params_of(optimizer), params_of(other), strict=True):
        for key, value in optimizer.state[p].items():
            assert same_bits(value, other.state[q][key])


def test_other_groups_without_names_are_refused_as_by_torch():
    optimizer = grouped(net(), ["a b c", "gain"])
    other = grouped(net(), ["a", "b c", "gain"], names=False)
    before = Picture(other)
    raises(ValueError, ["group"], lambda: other.load_state_dict(optimizer.state_dict()))
    Picture(other).assert_same(before)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("cut", [CUTS[1], CUTS[2], CUTS[4]], ids=str)
def test_through_distributed_checkpoint(cut, names, tmp_path):
    """It names parameters itself, and hands each saved group's options to one of the live ones."""
    model, twin = net(), net()
    optimizer = grouped(model, CUTS[0], names)
    steps(model, optimizer)
    states = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.save(states, checkpoint_id=tmp_path)
    states = copy.deepcopy(states)
    dcp.load(states, checkpoint_id=tmp_path)
    other = grouped(twin, cut, names)
    set_state_dict(
        twin, other, model_state_dict=states["model"], optim_state_dict=states["optimizer"]
    )
    assert_same_states(by_name(twin, other), by_name(model, optimizer))
    expected = [part.split() if names else None for part in cut]
    assert [group.get("param_names") for group in other.param_groups] == expected
    steps(model, optimizer)
    steps(twin, other)
    assert all(map(same_bits, model.parameters(), twin.parameters()))


# ---- What wrappers keep beside our state


def wrapped(make, dtype):
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(8, 6).to(dtype))
    optimizer = make(p)
    run(optimizer, 2, gradients())
    optimizer.state[p].update(
        slow=p.detach().clone(),  # Lookahead, SWA
        z=torch.randn(8, 6),  # ScheduleFree, in float32
        count=3,
        nested={"of": torch.ones(2), "any": [1, 2.0]},
    )
    return p, optimizer


MAKERS = {
    "torch's": lambda p: torch.optim.AdamW([p]),
    "adamw": lambda p: erlangen.Equivariant([{"params": [p], "rule": "adamw"}]),
    "spectral": lambda p: erlangen.Muon([p]),
    "row_norm": lambda p: erlangen.RowNorm([p], state_dtype="bfloat16"),
}
OURS = {"momentum_buffer", "exp_avg", "exp_avg_sq", "step"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("maker", ["adamw", "spectral", "row_norm"])
def test_entries_of_wrappers(maker, dtype):
    """They come back as torch's own optimizers bring them back; ours keep their dtype."""
    loaded = {}
    for name in ("torch's", maker):
        make = MAKERS[name]
        p, optimizer = wrapped(make, dtype)
        other = make(nn.Parameter(p.detach().clone()))
        other.load_state_dict(through_file(optimizer.state_dict()))
        loaded[name] = other.state[params_of(other)[0]]
    expected = {k: v for k, v in loaded["torch's"].items() if k not in OURS}
    found = {k: v for k, v in loaded[maker].items() if k not in OURS}
    assert found.keys() == expected.keys() == {"slow", "z", "count", "nested"}
    assert found["slow"].dtype == expected["slow"].dtype
    assert same_bits(found["z"], expected["z"])
    assert found["count"] == 3 and found["nested"]["any"] == [1, 2.0]
    assert same_bits(found["nested"]["of"], expected["nested"]["of"])
    for key in loaded[maker].keys() & OURS:
        assert same_bits(loaded[maker][key], optimizer.state[p][key])
    a, b = run(optimizer, 2, gradients(4)), run(other, 2, gradients(4))
    assert all(map(same_bits, a, b))
    assert other.state[params_of(other)[0]]["count"] == 3


@pytest.mark.parametrize("maker", ["adamw", "spectral", "row_norm"])
def test_our_entries_beside_them_must_fit(maker):
    p, optimizer = wrapped(MAKERS[maker], torch.float32)
    before = Picture(erlangen.Equivariant([{"params": [p], "rule": "adamw"}]))
    for key in optimizer.state[p].keys() & (OURS - {"step"}):
        state_dict = copy.deepcopy(optimizer.state_dict())
        state_dict["state"][0][key] = torch.ones(6, 8)
        raises(ValueError, [key, "[6, 8]"], lambda s=state_dict: optimizer.load_state_dict(s))
        del state_dict["state"][0][key]
        # Another rule's: with none of ours it would be that of a parameter without steps.
        other = "exp_avg" if key == "momentum_buffer" else "momentum_buffer"
        state_dict["state"][0][other] = torch.ones(8, 6)
        raises(ValueError, [key, "loaded"], lambda s=state_dict: optimizer.load_state_dict(s))
    assert same_bits(p, before.params[0])
