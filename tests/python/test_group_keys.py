"""What else stands in parameter groups: keys of other people stay and change nothing, slips of the
pen are refused where a group is given, and torch's own flags are taken where they ask for nothing
that is not done."""

import copy
import pickle

import erlangen
import pytest
import torch
from erlangen import _C
from state_helpers import Picture, gradients, raises, run, same_bits
from torch import nn

OPTIONS = [name for name in _C.option_names() if name not in ("role", "param_names")]

# Of Lightning, SAM, gaussian splatting, mmcv and Megatron, torch's and timm's schedulers, timm's
# Lookahead, ScheduleFree, Prodigy, LARS, Adafactor, GaLore, apex.
FOREIGN = """name rho adaptive lr_mult decay_mult wd_mult weight_decay_mult momentum_decay base_lr
initial_lr max_lr min_lr base_momentum max_momentum swa_lr lr_scale lr_ratio group_name layer_id
lookahead_alpha lookahead_k lookahead_step k r d d0 lr_max weight_sum weight_lr_power train_mode
warmup_steps scheduled_lr eta trust_coefficient scale_parameter rank update_proj_gap step steps
is_expert_parallel is_decoupled_lr id tag type no_weight_decay dampening decoupled_weight_decay
"""
FOREIGN = FOREIGN.split()


def parameter():
    return nn.Parameter(torch.randn(8, 6))


def twins():
    p = parameter()
    return p, nn.Parameter(p.detach().clone())


@pytest.mark.filterwarnings("ignore:.*lr_scale")  # that it is timm's
@pytest.mark.parametrize("how", ["constructor", "add_param_group", "Muon"])
@pytest.mark.parametrize("key", FOREIGN)
def test_keys_of_other_people(key, how):
    """Kept, saved and loaded, and the steps are as without them."""
    p, q = twins()
    mark = {"of": key}
    group, plain = {"params": [p], "rule": "spectral"}, {"params": [q], "rule": "spectral"}
    if how == "add_param_group":
        cls = erlangen.Equivariant
        first = [{"params": [parameter()], "rule": "row_norm"} for _ in range(2)]
        optimizer, other = cls(first[:1]), cls(first[1:])
        optimizer.add_param_group({**group, key: mark})
        other.add_param_group(plain)
    else:
        cls = getattr(erlangen, "Muon" if how == "Muon" else "Equivariant")
        optimizer, other = cls([{**group, key: mark}]), cls([plain])
    a, b = run(optimizer, 2, gradients())[-1], run(other, 2, gradients())[-1]
    assert same_bits(a, b)
    copies = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    copies[0].load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one in (optimizer, *copies):
        assert one.param_groups[-1][key] == mark


def slips(name):
    """What two fingers make of a name."""
    yield name[:2] + name[3:]  # a letter left out
    yield name[0] + name
    yield name[:-1] + "q"
    yield name[:-2] + name[-1] + name[-2]  # two swapped
    yield name.upper()
    if len(name) > 7:
        yield name[1:-1]
        yield name[:3] + "zz" + name[3:]
        yield "xx" + name[2:]


@pytest.mark.parametrize("name", [name for name in OPTIONS if len(name) > 2])
def test_slips(name):
    known = {*_C.option_names(), "params"}
    for slip in {slip for slip in slips(name) if len(slip) > 2} - known:
        words = ["param_groups[0]", f"unknown option {slip!r}", "did you mean"]
        group = {"params": [parameter()], "rule": "spectral", slip: 0.5}
        raises(ValueError, words, lambda group=group: erlangen.Equivariant([group]))
        live = erlangen.RowNorm([parameter()])
        before = Picture(live)
        words[0] = "param_groups[1]"
        raises(ValueError, words, lambda group=group, live=live: live.add_param_group(group))
        Picture(live).assert_same(before)
        # In a checkpoint it may be anybody's.
        state_dict = live.state_dict()
        state_dict["param_groups"][0][slip] = 0.5
        live.load_state_dict(state_dict)
        assert live.param_groups[0][slip] == 0.5


@pytest.mark.parametrize(
    ("slip", "name"),
    [
        ("momentun", "momentum"),
        ("wieght_decay", "weight_decay"),
        ("weightdecay", "weight_decay"),
        ("LR", "lr"),
        ("lrs", "lr"),
        ("beta", "betas"),
        ("nestorov", "nesterov"),
        ("centre", "center"),
        ("param_name", "param_names"),
    ],
)
def test_the_hint(slip, name):
    group = {"params": [parameter()], "rule": "spectral", slip: 0.5}
    raises(ValueError, [repr(slip), repr(name)], lambda: erlangen.Equivariant([group]))


@pytest.mark.parametrize("key", ["name", "rho", "learning_rate", "betas_"])
@pytest.mark.parametrize("cls", [erlangen.Equivariant, erlangen.Muon])
def test_arguments_that_do_not_exist(cls, key):
    group = {"params": [parameter()], "rule": "spectral"}
    raises(ValueError, [cls.__name__, repr(key), "weight_decay"], lambda: cls([group], **{key: 1}))


def test_a_wrapper_that_hands_its_groups_on():
    """The usual form of SAM: its own groups, with its own option, are the base's."""

    class SAM(torch.optim.Optimizer):
        def __init__(self, params, base, rho=0.05, **options):
            super().__init__(params, {"rho": rho, **options})
            self.base = base(self.param_groups, **options)
            self.param_groups = self.base.param_groups

        def step(self, closure=None):
            self.base.step()

    model, twin = nn.Linear(6, 4), nn.Linear(6, 4)
    twin.load_state_dict(model.state_dict())
    wrapped = SAM(erlangen.param_groups(model), erlangen.Equivariant, lr=0.02)
    plain = erlangen.Equivariant(twin, lr=0.02)
    assert all(map(same_bits, run(wrapped, 2, gradients()), run(plain, 2, gradients())))
    assert all(group["rho"] == 0.05 for group in wrapped.param_groups)


FLAGS = [
    *(({name: value}) for name in ("foreach", "fused") for value in (None, True, False)),
    *(({name: value}) for name in ("differentiable", "amsgrad") for value in (None, False)),
]


@pytest.mark.parametrize("flag", FLAGS, ids=str)
@pytest.mark.parametrize("cls", [erlangen.Equivariant, erlangen.Muon, erlangen.RowNorm])
def test_flags_of_torch(cls, flag):
    p, q = twins()
    group = {"rule": "spectral"}
    optimizers = [cls([{"params": [p], **group}], **flag), cls([{"params": [q], **group}])]
    assert not optimizers[0].defaults.keys() & flag.keys()
    optimizers[0].add_param_group({"params": [parameter()], **group, **flag})
    assert optimizers[0].param_groups[1].items() >= flag.items()
    a, b = (run(optimizer, 1, gradients())[0] for optimizer in optimizers)
    assert same_bits(a, b)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ({"differentiable": True}, ["differentiable is True", "None, False"]),
        ({"amsgrad": True}, ["amsgrad is True", "None, False"]),
        ({"foreach": "yes"}, ["foreach is 'yes'", "None, False, True"]),
        ({"fused": 1}, ["fused is 1", "None, False, True"]),
    ],
    ids=str,
)
def test_flags_that_ask_for_more(flag, words):
    group = {"params": [parameter()], "rule": "spectral"}
    raises(ValueError, ["RowNorm", *words], lambda: erlangen.RowNorm([parameter()], **flag))
    raises(
        ValueError, ["param_groups[0]", *words], lambda: erlangen.Equivariant([{**group, **flag}])
    )
