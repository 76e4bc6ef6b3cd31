"""Groups without a rule, given to an optimizer that was made from a model: what thaws later."""

import copy
import gc
import pickle
import warnings

import erlangen
import pytest
import torch
from state_helpers import Picture, gradients, params_of, raises, run, same_bits, set_grads
from torch import nn
from torch.optim.lr_scheduler import StepLR

OPTIONS = {"lr": 0.02, "weight_decay": 0.1}


class Tower(nn.Module):
    """A backbone whose parameters have several roles, and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(
            nn.Embedding(7, 6), nn.Linear(6, 8), nn.LayerNorm(8), nn.MultiheadAttention(8, 2)
        )
        self.head = nn.Linear(8, 3)


def frozen_tower() -> Tower:
    model = Tower()
    model.backbone.requires_grad_(False)
    return model


def thaw(model, optimizer, **options):
    params = list(model.backbone.requires_grad_(True).parameters())
    optimizer.add_param_group({"params": params, **options})


def kinds(groups) -> list[dict]:
    """What routing says of each group."""
    return [
        {k: g.get(k) for k in ("param_names", "role", "rule", "layout", "center", "update_scale")}
        for g in groups
    ]


def only(groups, names: set[str]) -> list[dict]:
    """The groups' parts that have these names."""
    result = []
    for group in groups:
        index = [i for i, name in enumerate(group["param_names"]) if name in names]
        if index:
            lists = {k: [group[k][i] for i in index] for k in ("params", "param_names")}
            result.append({**group, **lists})
    return result


def backbone_names(model) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.startswith("backbone")}


def by_hand(model, **options):
    """An optimizer with the same groups: the head's first, then the backbone's."""
    groups, names = erlangen.param_groups(model), backbone_names(model)
    rest = {name for name, _ in model.named_parameters()} - names
    backbone = [{**group, **options} for group in only(groups, names)]
    return erlangen.Equivariant([*only(groups, rest), *backbone], **OPTIONS)


def test_thawed_parameters_get_the_models_rules():
    model, twin = frozen_tower(), Tower()
    optimizer = erlangen.Equivariant(model, **OPTIONS)
    assert {n for g in optimizer.param_groups for n in g["param_names"]} == {
        "head.weight",
        "head.bias",
    }
    thaw(model, optimizer)
    reference = by_hand(twin)
    assert kinds(optimizer.param_groups) == kinds(reference.param_groups)
    assert len({g["role"] for g in optimizer.param_groups}) >= 4
    assert all(map(same_bits, run(optimizer, 3, gradients()), run(reference, 3, gradients())))


def test_what_has_trained_goes_on_as_it_was():
    model, twin = frozen_tower(), frozen_tower()
    optimizer, alone = (erlangen.Equivariant(m, **OPTIONS) for m in (model, twin))
    run(optimizer, 2, gradients())
    run(alone, 2, gradients())
    thaw(model, optimizer)
    for _ in range(2):
        set_grads(model.parameters(), gradients(5))
        for p, q in zip(twin.head.parameters(), model.head.parameters(), strict=True):
            p.grad = q.grad.clone()
        optimizer.step()
        alone.step()
    assert all(map(same_bits, model.head.parameters(), twin.head.parameters()))


def test_the_choices_that_it_was_made_with():
    """Overrides of what is frozen by now match nothing any more; they are no errors then."""
    model = frozen_tower()
    overrides = {
        "head.weight": {"rule": "hybrid"},
        "dense": {"momentum": 0.5},
    }
    optimizer = erlangen.Equivariant(model, overrides=overrides, adjust_lr_fn="original", **OPTIONS)
    overrides["dense"]["momentum"] = 0.7  # the caller's own dict from here on
    model.head.requires_grad_(False)
    thaw(model, optimizer)
    twin = Tower()
    overrides["dense"]["momentum"] = 0.5
    groups = erlangen.param_groups(twin, overrides, adjust_lr_fn="original")
    expected = erlangen.Equivariant(
        only(groups, backbone_names(twin)), adjust_lr_fn="original", **OPTIONS
    ).param_groups
    new = optimizer.param_groups[-len(expected) :]
    assert kinds(new) == kinds(expected)
    assert [g["momentum"] for g in new] == [g["momentum"] for g in expected]
    assert [g["adjust_lr_fn"] for g in new] == [g["adjust_lr_fn"] for g in expected]
    assert 0.5 in {g["momentum"] for g in new}
    assert not any(p.requires_grad for p in model.head.parameters())


def test_frozen_ones_may_be_added_before_they_thaw():
    model = frozen_tower()
    optimizer = erlangen.Equivariant(model, **OPTIONS)
    optimizer.add_param_group({"params": model.backbone.parameters()})
    assert kinds(optimizer.param_groups) == kinds(by_hand(Tower()).param_groups)
    assert not any(p.requires_grad for p in model.backbone.parameters())


def test_own_options_beat_the_models():
    model = frozen_tower()
    optimizer = erlangen.Equivariant(model, **OPTIONS)
    old = len(optimizer.param_groups)
    thaw(model, optimizer, lr=0.5, weight_decay=0.25, momentum=0.7)
    for group in optimizer.param_groups[old:]:
        assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.5, 0.25, 0.7)


def test_entries_of_other_people_stay():
    """A "name" is the last group's; the others' differ from it, as Lightning's monitor wants."""
    model = frozen_tower()
    optimizer = erlangen.Equivariant(model, **OPTIONS)
    thaw(model, optimizer, name="backbone", lr_mult=0.1, tags=["a"])
    new = [g for g in optimizer.param_groups if "lr_mult" in g]
    assert len(new) > 1 and {g["lr_mult"] for g in new} == {0.1}
    assert new[-1]["name"] == "backbone" and len({g["name"] for g in new}) == len(new)
    assert len({id(g["tags"]) for g in new}) == len(new)


@pytest.mark.parametrize("form", ["tuples", "param_names"])
def test_given_names_stay(form):
    model = frozen_tower()
    optimizer = erlangen.Equivariant(model, **OPTIONS)
    named = dict(model.backbone.named_parameters())
    if form == "tuples":
        optimizer.add_param_group({"params": named.items()})
    else:
        group = {"params": list(named.values()), "param_names": list(named)}
        optimizer.add_param_group(group)
    for group in optimizer.param_groups[2:]:
        for name, p in zip(group["param_names"], group["params"], strict=True):
            assert named[name] is p


def test_a_tied_parameter_may_come_twice():
    """As from Lightning's walk over modules, which meets it in each."""
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False))
    model[2].weight = model[0].weight
    model[0].weight.requires_grad_(False)
    optimizer = erlangen.Equivariant(model, **OPTIONS)
    table = model[0].weight.requires_grad_(True)
    optimizer.add_param_group({"params": [model[0].weight, model[2].weight]})
    (group,) = [g for g in optimizer.param_groups if g["role"] == "embedding"]
    assert group["params"][0] is table and len(group["params"]) == 1


def test_one_group_stays_one():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, bias=False))
    model[1].requires_grad_(False)
    optimizer = erlangen.Equivariant(model, **OPTIONS)
    count = len(optimizer.param_groups)
    optimizer.add_param_group({"params": model[1].requires_grad_(True).weight, "momentum": 0.5})
    assert len(optimizer.param_groups) == count + 1
    assert optimizer.param_groups[-1]["params"] == [model[1].weight]
    assert "lr_with" not in optimizer.param_groups[-1]


# ---- What is only assumed


class Own(nn.Module):
    """A class that nobody knows: what its matrix is can only be assumed."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))


def with_own_class(first, second):
    model = nn.Sequential(first, second)
    model[1].requires_grad_(False)
    return model


def test_what_is_assumed_of_the_new_ones_is_told():
    model = with_own_class(nn.LayerNorm(4), Own())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = erlangen.Equivariant(model, **OPTIONS)
    with pytest.warns(UserWarning, match="1.weight") as told:
        optimizer.add_param_group({"params": [model[1].weight]})
    assert len(told) == 1 and told[0].filename == __file__


def test_what_was_told_is_not_told_again():
    model = with_own_class(Own(), nn.LayerNorm(4))
    with pytest.warns(UserWarning, match="0.weight"):
        optimizer = erlangen.Equivariant(model, **OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.add_param_group({"params": list(model[1].parameters())})
    assert optimizer.param_groups[-1]["evidence"] == ["declared"] * 2


def test_the_warning_lists_the_new_ones_alone():
    model = with_own_class(Own(), Own())
    with pytest.warns(UserWarning, match="0.weight"):
        optimizer = erlangen.Equivariant(model, **OPTIONS)
    with pytest.warns(UserWarning, match="1.weight") as told:
        optimizer.add_param_group({"params": [model[1].weight]})
    assert len(told) == 1 and "the role of 1 of 2" in str(told[0].message)
    assert "0.weight" not in str(told[0].message)


def test_strict_stays_strict():
    model = with_own_class(nn.LayerNorm(4), Own())
    optimizer = erlangen.Equivariant(model, strict=True, **OPTIONS)
    refused(ValueError, ["1.weight", "overrides"], optimizer, {"params": [model[1].weight]})
    model[1].requires_grad_(True)
    raises(ValueError, ["1.weight"], lambda: erlangen.Equivariant(model, strict=True))


# ---- One learning rate


def moved(optimizer) -> list[float]:
    before = [p.detach().clone() for p in params_of(optimizer)]
    run(optimizer, 1, gradients())
    return [(p - q).norm().item() for p, q in zip(params_of(optimizer), before, strict=True)]


def thawed(lr=0.1):
    model = frozen_tower()
    optimizer = erlangen.Equivariant(model, lr=0.02, weight_decay=0.0)
    thaw(model, optimizer, lr=lr)
    return optimizer


@pytest.mark.parametrize("copied", ["", "deepcopy", "pickle", "state_dict", "rebuilt"])
@pytest.mark.parametrize("tensor", [False, True])
def test_all_follow_the_last(tensor, copied):
    rate = (lambda x: torch.tensor(x)) if tensor else (lambda x: x)
    optimizer = thawed(rate(0.1))
    if copied == "deepcopy":
        optimizer = copy.deepcopy(optimizer)
    elif copied == "pickle":
        optimizer = pickle.loads(pickle.dumps(optimizer))
    elif copied == "state_dict":
        state = copy.deepcopy(optimizer.state_dict())
        optimizer = thawed(rate(0.3))
        optimizer.load_state_dict(state)
    elif copied == "rebuilt":  # as Lightning's BaseFinetuning does when it resumes
        optimizer.param_groups = [dict(group) for group in optimizer.param_groups]
    twin = thawed(0.1)
    new = [g for g in twin.param_groups if g["lr"] == 0.1]
    optimizer.param_groups[-1]["lr"] = rate(0.05)
    for group in new:
        group["lr"] = 0.05
    assert moved(optimizer) == pytest.approx(moved(twin), rel=1e-5)
    assert [float(g["lr"]) for g in optimizer.param_groups] == pytest.approx(
        [0.02] * (len(twin.param_groups) - len(new)) + [0.05] * len(new)
    )
    if tensor:  # each its own, as schedulers change them in place
        assert len({id(g["lr"]) for g in optimizer.param_groups if "lr_with" in g}) == len(new)


def test_a_loaded_dict_without_the_link_leaves_it():
    optimizer = thawed()
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        group.pop("lr_with", None)
    optimizer.load_state_dict(state)
    optimizer.param_groups[-1]["lr"] = 0.5
    run(optimizer, 1, gradients())
    assert [g["lr"] for g in optimizer.param_groups].count(0.5) > 1


def test_each_addition_has_its_own():
    model = frozen_tower()
    optimizer = erlangen.Equivariant(model, **OPTIONS)
    sizes = [len(optimizer.param_groups)]
    for part, lr in ((model.backbone[:2], 0.1), (model.backbone[2:], 0.2)):
        optimizer.add_param_group({"params": part.requires_grad_(True).parameters(), "lr": lr})
        sizes.append(len(optimizer.param_groups))
    assert sizes[1] - sizes[0] > 1 and sizes[2] - sizes[1] > 1
    optimizer.param_groups[sizes[1] - 1]["lr"] = 0.3
    optimizer.param_groups[-1]["lr"] = 0.4
    run(optimizer, 1, gradients())
    rates = [g["lr"] for g in optimizer.param_groups]
    assert rates == [0.02] * sizes[0] + [0.3] * (sizes[1] - sizes[0]) + [0.4] * (
        sizes[2] - sizes[1]
    )


def test_one_can_be_let_go():
    optimizer = thawed()
    first = next(g for g in optimizer.param_groups if "lr_with" in g)
    del first["lr_with"]
    first["lr"] = 0.7
    optimizer.param_groups[-1]["lr"] = 0.5
    run(optimizer, 1, gradients())
    assert first["lr"] == 0.7
    assert [g["lr"] for g in optimizer.param_groups].count(0.5) > 1


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("lr", "a", ['lr must be a number, got "a"']),
        ("lr", -1.0, ["lr", "-1"]),
        ("lr_with", [1], ["lr_with", "[1]"]),
    ],
)
def test_a_bad_value_goes_to_no_other_group(key, value, words):
    optimizer = thawed()
    set_grads(params_of(optimizer), gradients())
    optimizer.param_groups[-1][key] = value
    before = Picture(optimizer)
    where = f"param_groups[{len(optimizer.param_groups) - 1}]"
    raises((ValueError, TypeError), [where, *words], optimizer.step)
    Picture(optimizer).assert_same(before)


def test_a_scheduler_steers_them_together():
    optimizer = thawed()
    scheduler = StepLR(optimizer, 1, 0.5)
    for _ in range(2):
        run(optimizer, 1, gradients())
        scheduler.step()
    assert {g["lr"] for g in optimizer.param_groups} == {0.02 / 4, 0.1 / 4}


# ---- What is refused, with everything as it was


def refused(error, words, optimizer, group):
    before = Picture(optimizer)
    frozen = [p.requires_grad for p in group["params"] if isinstance(p, torch.Tensor)]
    raises(error, words, lambda: optimizer.add_param_group(group))
    Picture(optimizer).assert_same(before)
    assert frozen == [p.requires_grad for p in group["params"] if isinstance(p, torch.Tensor)]


WRITE = ["no rule", '"rule": rule', "spectral", "adamw", "erlangen.param_groups(model)"]


def test_a_parameter_of_another_model():
    model = frozen_tower()
    optimizer = erlangen.Equivariant(model, **OPTIONS)
    stranger = nn.Parameter(torch.zeros(4, 3))
    group = {"params": [*model.backbone.parameters(), stranger]}
    count = len(group["params"]) - 1
    words = [*WRITE, "param_groups[2]", f"parameter {count}", "[4, 3]", "not of the model"]
    refused(ValueError, words, optimizer, group)
    optimizer.add_param_group({**group, "rule": "adamw"})


def test_the_model_is_gone():
    model = frozen_tower()
    optimizer, backbone = erlangen.Equivariant(model, **OPTIONS), model.backbone
    del model  # the optimizer does not keep it
    gc.collect()
    refused(ValueError, [*WRITE, "gone"], optimizer, {"params": list(backbone.parameters())})


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "groups"])
def test_no_model(way):
    model = frozen_tower()
    optimizer = erlangen.Equivariant(model, **OPTIONS)
    if way == "deepcopy":
        optimizer = copy.deepcopy(optimizer)
    elif way == "pickle":
        optimizer = pickle.loads(pickle.dumps(optimizer))
    else:
        optimizer = erlangen.Equivariant(erlangen.param_groups(model), **OPTIONS)
    refused(ValueError, WRITE, optimizer, {"params": list(model.backbone.parameters())})


def test_loading_keeps_the_model():
    model = frozen_tower()
    optimizer = erlangen.Equivariant(model, **OPTIONS)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    thaw(model, optimizer)
    assert len(params_of(optimizer)) == len(list(model.parameters()))


def test_one_bad_option_adds_no_group():
    model = frozen_tower()
    optimizer = erlangen.Equivariant(model, **OPTIONS)
    params = list(model.backbone.parameters())
    refused(ValueError, ["center"], optimizer, {"params": params, "center": True})
    refused(ValueError, ["lr_with", "'a'"], optimizer, {"params": params, "lr_with": "a"})


@pytest.mark.parametrize("bad", ["integers", "no tensor"])
def test_no_floating_point(bad):
    model = frozen_tower()
    optimizer = erlangen.Equivariant(model, **OPTIONS)
    value = nn.Parameter(torch.zeros(3, dtype=torch.int8), False) if bad == "integers" else 3
    words = ["param_groups[2], parameter 1", "int", "floating point"]
    params = [model.backbone[0].weight, value]
    refused(TypeError, words, optimizer, {"params": params})


@pytest.mark.parametrize("choice", [{"overrides": {"head": {"rule": "adamw"}}}, {"strict": True}])
def test_choices_need_a_model(choice):
    groups = erlangen.param_groups(Tower())
    words = [*choice, "without a model"]
    raises(TypeError, words, lambda: erlangen.Equivariant(groups, **choice))
