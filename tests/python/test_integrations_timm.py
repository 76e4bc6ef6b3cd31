"""timm: its schedulers, groups of layer decay, and Lookahead."""

import copy
import warnings

import erlangen
import pytest
import torch
from rule_helpers import one_thread  # noqa: F401
from state_helpers import Picture, gradients, params_of, run, same_bits, values
from timm.models.vision_transformer import VisionTransformer
from timm.optim import Lookahead, param_groups_layer_decay
from timm.scheduler.scheduler_factory import create_scheduler_v2
from torch import nn

RATE, DECAY, STEPS = 0.02, 0.5, 4


def vision_transformer():
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=8, patch_size=4, embed_dim=12, depth=2, num_heads=2, num_classes=3
    )


def routed(model):
    """Routed groups; what is no matrix of a layer is what AdamW would have made of it."""
    return erlangen.param_groups(
        model, {"cls_token": {"role": "other"}, "pos_embed": {"role": "other"}}
    )


def layer_scales(model) -> dict[nn.Parameter, float]:
    groups = param_groups_layer_decay(model, layer_decay=DECAY)
    return {p: group["lr_scale"] for group in groups for p in group["params"]}


def by_layer(model):
    """Routed groups, one a parameter, with timm's factor on its layer's lr."""
    scales = layer_scales(model)
    return [
        {"update_scale": 1.0, **group, "params": [p], "param_names": [name], "lr_scale": scales[p]}
        for group in routed(model)
        for name, p in zip(group["param_names"], group["params"], strict=True)
    ]


def scheduler_of(kind, optimizer):
    return create_scheduler_v2(
        optimizer,
        kind,
        num_epochs=STEPS,
        warmup_epochs=1,
        warmup_lr=RATE / 10,
        min_lr=RATE / 20,
        decay_epochs=1 if kind == "step" else 0.5,
        decay_milestones=[2, 3],
        patience_epochs=0,
        decay_rate=0.5,
        noise=[2, 4],
    )[0]


def rates_of(kind, scales) -> list[list[float]]:
    """The rates that the scheduler gives AdamW, by step, then by group."""
    groups = [{"params": [nn.Parameter(torch.zeros(()))], "lr_scale": s} for s in scales]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    scheduler = scheduler_of(kind, optimizer)
    rates = []
    for step in range(STEPS):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step(step + 1, metric=1.0)
    return rates


def scheduled(optimizer, scheduler, first=0):
    for step in range(first, STEPS):
        run(optimizer, 1, gradients(step))
        scheduler.step(step + 1, metric=1.0)


def at_rates(optimizer, rates):
    """The same steps with rates set by hand, and no "lr_scale"."""
    for group in optimizer.param_groups:
        group.pop("lr_scale", None)
    for step, by_group in enumerate(rates):
        for group, rate in zip(optimizer.param_groups, by_group, strict=True):
            group["lr"] = rate
        run(optimizer, 1, gradients(step))


@pytest.mark.parametrize("kind", ["cosine", "tanh", "step", "multistep", "poly", "plateau"])
def test_schedulers(kind):
    """A run under them is the run with their rates, and can be taken up again."""
    model, twin = vision_transformer(), vision_transformer()
    optimizer, reference = (erlangen.Equivariant(routed(m), lr=RATE) for m in (model, twin))
    scheduler = scheduler_of(kind, optimizer)
    halfway = None
    for step in range(STEPS):
        if step == 2:
            halfway = copy.deepcopy([o.state_dict() for o in (model, optimizer, scheduler)])
        run(optimizer, 1, gradients(step))
        scheduler.step(step + 1, metric=1.0)
    rates = rates_of(kind, [1.0] * len(optimizer.param_groups))
    assert len({r for by_group in rates for r in by_group}) > 1
    at_rates(reference, rates)
    assert all(map(same_bits, model.parameters(), twin.parameters()))

    other = vision_transformer()
    resumed = erlangen.Equivariant(routed(other), lr=RATE)
    again = scheduler_of(kind, resumed)
    for thing, state in zip((other, resumed, again), halfway, strict=True):
        thing.load_state_dict(state)
    scheduled(resumed, again, first=2)
    Picture(resumed).assert_same_tensors(Picture(optimizer))


def test_layer_decay_counts_once():
    model, twin = vision_transformer(), vision_transformer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = erlangen.Equivariant(by_layer(model), lr=RATE)
    reference = erlangen.Equivariant(by_layer(twin), lr=RATE)
    scales = [group["lr_scale"] for group in optimizer.param_groups]
    assert len(set(scales)) == 4
    scheduled(optimizer, scheduler_of("cosine", optimizer))
    at_rates(reference, rates_of("cosine", scales))
    assert all(map(same_bits, params_of(optimizer), params_of(reference)))
    assert "blocks.0.attn.qkv.weight" in optimizer.explain(full=True)


def test_timms_own_groups_with_a_rule():
    """All by AdamW: the same as torch's."""
    model, twin = vision_transformer(), vision_transformer()
    groups = [{**g, "rule": "adamw"} for g in param_groups_layer_decay(model, layer_decay=DECAY)]
    with pytest.warns(UserWarning, match="update_scale") as told:
        optimizer = erlangen.Equivariant(groups, lr=RATE, betas=(0.9, 0.999))
    assert len(told) == 1
    theirs = torch.optim.AdamW(param_groups_layer_decay(twin, layer_decay=DECAY), lr=RATE)
    scheduled(optimizer, scheduler_of("cosine", optimizer))
    scheduled(theirs, scheduler_of("cosine", theirs))
    rates = [[g["lr"] for g in o.param_groups] for o in (optimizer, theirs)]
    assert rates[0] == rates[1] and len(set(rates[0])) == 4
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


# ---- Lookahead

ALPHA, K = 0.5, 2


def test_lookahead():
    model, twin = vision_transformer(), vision_transformer()
    optimizer = Lookahead(erlangen.Equivariant(routed(model), lr=RATE), ALPHA, K)
    plain = erlangen.Equivariant(routed(twin), lr=RATE)
    scheduler = scheduler_of("cosine", optimizer)
    rates = rates_of("cosine", [1.0] * len(plain.param_groups))
    slow = None
    for step, by_group in enumerate(rates):
        run(optimizer, 1, gradients(step))
        scheduler.step(step + 1)
        for group, rate in zip(plain.param_groups, by_group, strict=True):
            group["lr"] = rate
        run(plain, 1, gradients(step))
        if step % K == K - 1:
            now = values(params_of(plain))
            slow = (
                now
                if slow is None
                else [s + ALPHA * (n - s) for s, n in zip(slow, now, strict=True)]
            )
            for p, s in zip(params_of(plain), slow, strict=True):
                p.data.copy_(s)
    for p, q in zip(params_of(optimizer), params_of(plain), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_lookahead_resumes():
    model = vision_transformer()
    optimizer = Lookahead(erlangen.Equivariant(routed(model), lr=RATE), ALPHA, K)
    run(optimizer, 3, gradients())
    states = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    run(optimizer, 3, gradients(2))

    other = vision_transformer()
    resumed = Lookahead(erlangen.Equivariant(routed(other), lr=RATE), ALPHA, K)
    for thing, state in zip((other, resumed), states, strict=True):
        thing.load_state_dict(state)
    run(resumed, 3, gradients(2))
    assert all(map(same_bits, model.parameters(), other.parameters()))
    Picture(resumed._base_optimizer).assert_same_tensors(Picture(optimizer._base_optimizer))
