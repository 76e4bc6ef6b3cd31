"""What the caller says to routing, and what routing refuses."""

import pytest
import torch
from erlangen.routing import param_groups
from expected_roles import build
from routing_helpers import LISTS
from torch import nn


def group_of(model, name, **kwargs):
    """The group that holds the parameter, without the parameters."""
    group = next(g for g in param_groups(model, **kwargs) if name in g["param_names"])
    return {k: v for k, v in group.items() if k not in LISTS}


@pytest.fixture(scope="module")
def qwen3():
    return build("qwen3")


def test_by_role_glob_and_name(qwen3):
    overrides = {
        "model.layers.1.mlp.up_proj.weight": {"update_scale": 4.0},
        "model.layers.*.mlp.*": {"update_scale": 3.0, "momentum": 0.8},
        "model.layers.1.*": {"momentum": 0.7},
        "mlp_in": {"update_scale": 2.0, "alpha": 1.0, "momentum": 0.9},
    }

    def of(layer, part):
        group = group_of(qwen3, f"model.layers.{layer}.mlp.{part}.weight", overrides=overrides)
        return group.get("update_scale"), group.get("momentum"), group.get("alpha")

    assert of(1, "up_proj") == (4.0, 0.7, 1.0)  # of two globs the later one
    assert of(1, "gate_proj") == (3.0, 0.7, 1.0)
    assert of(0, "gate_proj") == (3.0, 0.8, 1.0)
    assert of(0, "down_proj") == (3.0, 0.8, None)


STORED = {
    "points": (nn.Conv2d(16, 48, 1), [{"flatten": True}]),
    "grouped": (nn.Conv1d(8, 16, 3, groups=4), [{"flatten": True}, {"heads": 4, "dim": -2}]),
    "transposed": (nn.ConvTranspose1d(8, 6, 3), [{"flatten": True}, {"transpose": True}]),
    "bilinear": (nn.Bilinear(3, 4, 5), [{"flatten": True}]),
    "linear": (nn.Linear(8, 6), None),
}


@pytest.mark.parametrize("role", ["attention", "mlp_in", "router", "lm_head"])
@pytest.mark.parametrize("name", STORED)
def test_another_role_keeps_how_a_tensor_is_stored(name, role):
    module, layout = STORED[name]
    model = nn.ModuleList([module])
    group = group_of(model, "0.weight", overrides={"0.weight": {"role": role}})
    assert (group["role"], group.get("layout")) == (role, layout)


def test_a_layout_that_is_said_is_seen_in_why():
    model = nn.ModuleDict({name: nn.Linear(8, 8, bias=False) for name in ("wq", "wk", "wv", "wo")})
    said = {"wq.weight": {"layout": [{"heads": 4, "dim": -2}]}}
    before, after = (
        {g["param_names"][i]: why for g in groups for i, why in enumerate(g["why"])}
        for groups in (param_groups(model), param_groups(model, said))
    )
    assert before["wq.weight"].startswith("attention, how many heads is not said")
    assert after["wq.weight"] == "attention; layout: an override"
    assert after["wk.weight"] == before["wk.weight"]


def test_groups_split_by_options(qwen3):
    plain = param_groups(qwen3)
    split = param_groups(qwen3, {"model.layers.0.mlp.up_proj.weight": {"update_scale": 2.0}})
    assert len(split) == len(plain) + 1
    same = param_groups(qwen3, {"mlp_in": {"update_scale": 2.0}, "mlp_out": {"update_scale": 2.0}})
    assert len(same) == len(plain)


def test_another_role_brings_its_options(qwen3):
    name = "model.layers.0.self_attn.q_proj.weight"
    assert group_of(qwen3, name, overrides={name: {"role": "router"}}) == {
        "role": "router",
        "rule": "left_spectral",
        "center": True,
        "weight_decay": 0.0,
    }
    overrides = {name: {"role": "router", "center": False}, "router": {"update_scale": 2.0}}
    group = group_of(qwen3, name, overrides=overrides)
    assert group["center"] is False and group["update_scale"] == 2.0
    layout = [{"heads": 2, "dim": -2}]
    overrides = {"attention": {"role": "dense", "layout": layout}}
    assert group_of(qwen3, name, overrides=overrides) == {
        "role": "dense",
        "rule": "spectral",
        "layout": layout,
    }


def test_the_same_role_keeps_the_layout(qwen3):
    name = "model.layers.0.self_attn.q_proj.weight"
    overrides = {name: {"role": "attention", "update_scale": 2.0}}
    assert group_of(qwen3, name, overrides=overrides)["layout"] == [{"heads": 4, "dim": -2}]


def test_no_layout(qwen3):
    overrides = {"attention": {"layout": None}}
    assert "layout" not in group_of(
        qwen3, "model.layers.0.self_attn.q_proj.weight", overrides=overrides
    )


def test_adamw_instead_of_a_matrix_rule(qwen3):
    overrides = {"lm_head": {"rule": "adamw"}, "attention": {"rule": "adamw"}}
    head = group_of(qwen3, "lm_head.weight", overrides=overrides)
    assert head == {"role": "lm_head", "rule": "adamw", "weight_decay": 0.0}
    attention = group_of(qwen3, "model.layers.0.self_attn.q_proj.weight", overrides=overrides)
    assert attention == {"role": "attention", "rule": "adamw"}


def test_every_name_of_a_tied_parameter():
    model = build("qwen3", tied=True)
    overrides = {"lm_head.weight": {"update_scale": 7.0}}
    assert group_of(model, "model.embed_tokens.weight", overrides=overrides)["update_scale"] == 7.0


@pytest.mark.parametrize("tied", [False, True])
def test_lookup_tables_under_other_scales(tied):
    model = build("qwen3", tied=tied)
    for scale in ("original", "spectral_unclamped", "unit_rms_norm"):
        table = group_of(model, "model.embed_tokens.weight", adjust_lr_fn=scale)
        assert table["rule"] == "column_norm" and table["layout"] == [{"transpose": True}]
        assert table["adjust_lr_fn"] == scale
        mlp = group_of(model, "model.layers.0.mlp.up_proj.weight", adjust_lr_fn=scale)
        assert mlp == {"role": "mlp_in", "rule": "spectral", "adjust_lr_fn": scale}
        norm = group_of(model, "model.norm.weight", adjust_lr_fn=scale)
        assert norm == {"role": "other", "rule": "adamw", "weight_decay": 0.0}
    table = group_of(model, "model.embed_tokens.weight", adjust_lr_fn="none")
    assert table["rule"] == "row_norm" and "layout" not in table


def test_scale_of_one_group(qwen3):
    overrides = {"embedding": {"adjust_lr_fn": "original"}}
    table = group_of(qwen3, "model.embed_tokens.weight", overrides=overrides)
    assert table["rule"] == "column_norm" and table["adjust_lr_fn"] == "original"
    assert "adjust_lr_fn" not in group_of(qwen3, "lm_head.weight", overrides=overrides)


def test_overrides_are_not_changed(qwen3):
    overrides = {"attention": {"role": "dense", "update_scale": 2.0}}
    param_groups(qwen3, overrides)
    assert overrides == {"attention": {"role": "dense", "update_scale": 2.0}}


def test_groups_share_no_values(qwen3):
    for group in param_groups(qwen3, {"mlp_in": {"layout": [{"transpose": True}]}}):
        for step in group.get("layout", []):
            step.clear()
    assert group_of(qwen3, "model.layers.0.self_attn.q_proj.weight")["layout"] == [
        {"heads": 4, "dim": -2}
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"router": {"update_scale": 2.0}}, "'router'"),
        ({"model.layers.7.*": {"update_scale": 2.0}}, "model.layers.7"),
        ({"lm_head.wieght": {"update_scale": 2.0}}, "did you mean 'lm_head.weight'"),
        ({"model.norm": {"update_scale": 2.0}}, "did you mean 'model.norm.weight'"),
        ({"lm_head": {"update_scal": 2.0}}, "did you mean 'update_scale'"),
        ({"lm_head": {"lr_scale": 2.0}}, "it is called 'update_scale'"),
        ({"lm_head": {"params": []}}, "unknown option 'params'"),
        ({"lm_head": {"role": "head"}}, "unknown role 'head'"),
    ],
)
def test_bad_overrides(qwen3, overrides, message):
    with pytest.raises(ValueError, match=message):
        param_groups(qwen3, overrides)


@pytest.mark.parametrize("overrides", [[], {"lm_head": "router"}, {3: {}}])
def test_overrides_of_another_type(qwen3, overrides):
    with pytest.raises(TypeError, match="overrides"):
        param_groups(qwen3, overrides)


def test_unknown_scale(qwen3):
    with pytest.raises(ValueError, match="sideways"):
        param_groups(qwen3, adjust_lr_fn="sideways")


def test_frozen_parameters_are_left_out():
    model = build("qwen3")
    model.model.embed_tokens.requires_grad_(False)
    names = [n for group in param_groups(model) for n in group["param_names"]]
    assert "model.embed_tokens.weight" not in names and "lm_head.weight" in names
    with pytest.raises(ValueError, match="requires_grad is False"):
        param_groups(model, {"model.embed_tokens.weight": {"update_scale": 1.0}})
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        param_groups(model.requires_grad_(False))


@pytest.mark.parametrize("model", [None, [nn.Linear(2, 2).weight], nn.Linear])
def test_not_a_module(model):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        param_groups(model)


def test_lazy_module():
    with pytest.raises(ValueError, match="not initialised yet"):
        param_groups(nn.LazyLinear(3))


# Shards


def test_flat_parameter():
    model = nn.Linear(4, 6)
    model.weight = nn.Parameter(torch.zeros(24))
    with pytest.raises(ValueError, match="flattened shard"):
        param_groups(model)
    model.weight._is_flat_param = True
    with pytest.raises(ValueError, match="FSDP1.*Use DDP"):
        param_groups(model)


def test_zero_placeholder():
    model = nn.Linear(4, 6)
    model.weight = nn.Parameter(torch.zeros(0))
    with pytest.raises(ValueError, match="flattened shard"):
        param_groups(model)
    model.weight.ds_shape = torch.Size([6, 4])
    with pytest.raises(ValueError, match="ZeRO-3"):
        param_groups(model)


# Wrappers


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def roles_by_name(model):
    return {n: (g["role"], g.get("layout")) for g in param_groups(model) for n in g["param_names"]}


def check_wrapped(wrapped, prefix):
    plain = {prefix + name: value for name, value in roles_by_name(build("olmoe")).items()}
    assert roles_by_name(wrapped) == plain
    assert list(plain) == [n for g in param_groups(wrapped) for n in g["param_names"]]


def test_compiled():
    check_wrapped(torch.compile(build("olmoe")), "_orig_mod.")
    head = torch.compile(nn.Linear(4, 6))
    assert roles_by_name(head)["_orig_mod.weight"] == ("dense", None)


def test_compiled_parts():
    model = build("olmoe")
    attention = model.model.layers[0].self_attn
    attention.o_proj = torch.compile(attention.o_proj)
    model.lm_head = torch.compile(model.lm_head)
    roles = roles_by_name(model)
    name = "model.layers.0.self_attn.o_proj._orig_mod.weight"
    assert roles[name] == ("attention", [{"heads": 4, "dim": -1}])
    assert roles["lm_head._orig_mod.weight"] == ("lm_head", None)


def test_data_parallel(one_process):
    check_wrapped(nn.DataParallel(build("olmoe")), "module.")
    check_wrapped(nn.parallel.DistributedDataParallel(build("olmoe")), "module.")
    plain = nn.parallel.DistributedDataParallel(nn.Linear(4, 6))
    assert roles_by_name(plain)["module.weight"] == ("dense", None)


def test_fsdp2(one_process):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = build("olmoe")
    mesh = init_device_mesh("cpu", (1,))
    for layer in model.model.layers:
        fully_shard(layer.self_attn, mesh=mesh)
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    check_wrapped(model, "")


def test_fsdp1(one_process):
    from torch.distributed.fsdp import FullyShardedDataParallel

    device = torch.device("cpu")
    for use_orig_params in (False, True):
        model = FullyShardedDataParallel(
            nn.Linear(4, 6), device_id=device, use_orig_params=use_orig_params
        )
        with pytest.raises(ValueError, match="FSDP1"):
            param_groups(model)


def test_checkpointed_parts():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = build("qwen3")
    mlp = model.model.layers[0].mlp
    mlp.down_proj = checkpoint_wrapper(mlp.down_proj)
    model.model.layers[1] = checkpoint_wrapper(model.model.layers[1])
    roles = roles_by_name(model)
    assert any("_checkpoint_wrapped_module." in name for name in roles)
    unwrapped = {name.replace("_checkpoint_wrapped_module.", ""): v for name, v in roles.items()}
    assert unwrapped == roles_by_name(build("qwen3"))


def test_adamw_takes_nothing_of_the_role_that_is_meant_for_its_rule():
    (group,) = param_groups(nn.Embedding(7, 6), overrides={"embedding": {"rule": "adamw"}})
    assert "update_scale" not in group and group["weight_decay"] == 0.0
    (group,) = param_groups(
        nn.Embedding(7, 6), overrides={"embedding": {"rule": "adamw", "update_scale": 2.0}}
    )
    assert group["update_scale"] == 2.0
