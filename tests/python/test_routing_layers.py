"""torch's own layers, and what no evidence decides."""

import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import erlangen
import pytest
import torch
import torch.nn.functional as F
from erlangen.routing import param_groups
from expected_roles import columns, rows
from routing_helpers import Holder, as_matrices, found, grades, groups_of
from torch import nn

FLAT = {"flatten": True}
T = {"transpose": True}

# torch's own layers

MODULES = {
    "linear": (nn.Linear(4, 6), {"weight": ("dense", None), "bias": ("other", None)}),
    "embedding": (nn.Embedding(10, 4), {"weight": ("embedding", None)}),
    "embedding_bag": (nn.EmbeddingBag(10, 4), {"weight": ("embedding", None)}),
    "bilinear": (nn.Bilinear(4, 5, 6, bias=False), {"weight": ("dense", [FLAT])}),
    "conv1d": (nn.Conv1d(4, 6, 3, bias=False), {"weight": ("dense", [FLAT])}),
    "conv2d": (nn.Conv2d(4, 6, 3, bias=False), {"weight": ("dense", [FLAT])}),
    "conv3d": (nn.Conv3d(4, 6, 3, bias=False), {"weight": ("dense", [FLAT])}),
    "conv of one channel": (nn.Conv2d(1, 6, 3, bias=False), {"weight": ("dense", [FLAT])}),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, bias=False), {"weight": ("dense", [FLAT, *rows(2)])}),
    "depthwise": (nn.Conv1d(4, 8, 3, groups=4, bias=False), {"weight": ("other", None)}),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, bias=False), {"weight": ("dense", [FLAT, T])}),
    "transposed grouped": (
        nn.ConvTranspose1d(4, 6, 3, groups=2, bias=False),
        {"weight": ("dense", [FLAT, *rows(2), T])},
    ),
    "transposed depthwise": (
        nn.ConvTranspose1d(4, 4, 3, groups=4, bias=False),
        {"weight": ("other", None)},
    ),
    "layer_norm": (
        nn.LayerNorm([3, 4]),
        {"weight": ("other", None), "bias": ("other", None)},
    ),
    "rms_norm": (nn.RMSNorm([3, 4]), {"weight": ("other", None)}),
    "batch_norm": (nn.BatchNorm2d(4), {"weight": ("other", None), "bias": ("other", None)}),
    "group_norm": (nn.GroupNorm(2, 4), {"weight": ("other", None), "bias": ("other", None)}),
    "prelu": (nn.PReLU(4), {"weight": ("other", None)}),
    "lstm": (
        nn.LSTM(5, 6, bias=False, proj_size=2),
        {
            "weight_ih_l0": ("dense", rows(4)),
            "weight_hh_l0": ("dense", rows(4)),
            "weight_hr_l0": ("dense", None),
        },
    ),
    "gru": (
        nn.GRU(5, 6, bias=False),
        {"weight_ih_l0": ("dense", rows(3)), "weight_hh_l0": ("dense", rows(3))},
    ),
    "rnn": (
        nn.RNN(5, 6, bias=False),
        {"weight_ih_l0": ("dense", None), "weight_hh_l0": ("dense", None)},
    ),
    "lstm_cell": (
        nn.LSTMCell(5, 6, bias=False),
        {"weight_ih": ("dense", rows(4)), "weight_hh": ("dense", rows(4))},
    ),
    "attention": (
        nn.MultiheadAttention(12, 3, bias=False),
        {"in_proj_weight": ("attention", rows(9)), "out_proj.weight": ("attention", columns(3))},
    ),
    "cross attention": (
        nn.MultiheadAttention(12, 3, kdim=5, vdim=7, bias=False, add_bias_kv=True),
        {
            "q_proj_weight": ("attention", rows(3)),
            "k_proj_weight": ("attention", rows(3)),
            "v_proj_weight": ("attention", rows(3)),
            "bias_k": ("other", None),
            "bias_v": ("other", None),
            "out_proj.weight": ("attention", columns(3)),
        },
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_torch_module(name):
    module, table = MODULES[name]
    assert found(module) == table
    wrapped = nn.Sequential(nn.Sequential(module))
    assert found(wrapped) == {f"0.0.{key}": value for key, value in table.items()}


def test_transformer():
    roles = found(nn.Transformer(12, 3, 1, 1, dim_feedforward=20))
    matrices = {name: value for name, value in roles.items() if value[0] != "other"}
    encoder, decoder = "encoder.layers.0.", "decoder.layers.0."
    assert matrices == {
        f"{layer}{name}": value
        for layer, blocks in ((encoder, ["self_attn"]), (decoder, ["self_attn", "multihead_attn"]))
        for name, value in {
            **{f"{block}.in_proj_weight": ("attention", rows(9)) for block in blocks},
            **{f"{block}.out_proj.weight": ("attention", columns(3)) for block in blocks},
            "linear1.weight": ("mlp_in", None),
            "linear2.weight": ("mlp_out", None),
        }.items()
    }


class Classifier(nn.Module):
    """As people use it: torch's encoder between a table and a head."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 3, dim_feedforward=20, dropout=0.0, batch_first=True)
        self.embedding = nn.Embedding(11, 12)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(12, 5)

    def forward(self, tokens):
        return self.head(self.encoder(self.embedding(tokens)).mean(-2))


def test_transformer_encoder_of_a_user():
    model = Classifier()
    roles = found(model)
    matrices = {name: value for name, value in roles.items() if value[0] != "other"}
    layers = {
        f"encoder.layers.{i}.{name}": value
        for i in range(2)
        for name, value in {
            "self_attn.in_proj_weight": ("attention", rows(9)),
            "self_attn.out_proj.weight": ("attention", columns(3)),
            "linear1.weight": ("mlp_in", None),
            "linear2.weight": ("mlp_out", None),
        }.items()
    }
    assert matrices == {
        "embedding.weight": ("embedding", None),
        "head.weight": ("dense", None),
        **layers,
    }
    optimizer = erlangen.Equivariant(model, lr=0.02)
    tokens = torch.arange(11)[:, None].expand(11, 3)

    def loss():
        return F.cross_entropy(model(tokens), torch.arange(11) % 5)

    before = loss().item()
    for _ in range(20):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.7 * before


@pytest.mark.parametrize("name", ["grouped", "transposed grouped", "transposed"])
def test_convolution_layouts_are_maps_from_inputs_to_outputs(name):
    """With one input position a convolution is a matrix [out, in]; a transposed one always is."""
    module = MODULES[name][0]
    weight = module.weight.detach().double()
    matrices = as_matrices(weight, MODULES[name][1]["weight"][1])
    groups = module.groups
    matrices = matrices.reshape(groups, -1, matrices.shape[-1])
    x = torch.randn(1, module.in_channels, *weight.shape[2:], dtype=torch.float64)
    if module.transposed:
        x = x[(..., *[slice(0, 1)] * (x.ndim - 2))]
        convolve = F.conv_transpose1d if x.ndim == 3 else F.conv_transpose2d
    else:
        convolve = F.conv2d
    expected_output = convolve(x, weight, groups=groups).flatten()
    inputs = x.reshape(groups, -1, 1)
    torch.testing.assert_close((matrices @ inputs).flatten(), expected_output)


# What no evidence decides


def test_what_is_assumed_is_said_once_with_the_override():
    model = Holder(first=nn.Parameter(torch.zeros(3, 4)), blocks=nn.ModuleList())
    for _ in range(3):
        model.blocks.append(nn.Linear(4, 4))
    model.gain = nn.Parameter(torch.ones(8, 1, 1))
    with pytest.warns(UserWarning) as warned:
        groups = param_groups(model)
    assert len(warned) == 1
    message = str(warned[0].message)
    assert "the role of 4 of 5 matrices (88.2% of their elements) is only assumed" in message
    assert "first [3, 4]: other" in message and "3 × blocks.*.weight [4, 4]: dense" in message
    assert "gain" not in message and "'blocks.*.weight': {'role': 'dense'}" in message
    assert {g["role"] for g in groups} == {"dense", "other"}
    with pytest.raises(ValueError, match=r"first \[3, 4\]"):
        param_groups(model, strict=True)
    overrides = {"first": {"role": "router"}, "blocks.*": {"role": "dense"}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        groups = param_groups(model, overrides, strict=True)
    assert groups[0]["role"] == "router" and groups[0]["evidence"] == ["declared"]


def _layer():
    attention = Holder(qkv=nn.Linear(8, 24), proj=nn.Linear(8, 8))
    attention.n_heads = 2
    return Holder(proj=nn.Linear(8, 8), attn=attention)


ADVICE = {  # as globs these would take others too: a norm and a table, projections of attention
    "names": (
        lambda: nn.Sequential(
            *[nn.Linear(6, 6) for _ in "ab"], nn.LayerNorm(6), nn.Embedding(5, 6)
        ),
        ["0.weight", "1.weight"],
    ),
    "digits": (
        lambda: Holder(layers=nn.ModuleList(_layer() for _ in range(12))),
        ["layers.[0-9].proj.weight", "layers.[0-9][0-9].proj.weight"],
    ),
    "a star": (lambda: nn.Sequential(*[nn.Linear(6, 6) for _ in "ab"]), ["*.weight"]),
}


@pytest.mark.parametrize("name", ADVICE)
def test_the_advice_is_for_what_is_assumed_alone(name):
    make, keys = ADVICE[name]
    model = make()
    with pytest.warns(UserWarning) as warned:
        param_groups(model)
    message = str(warned[0].message)
    advice = eval(message[message.index("{\n") : message.index("  }\n") + 3])
    assert advice == {key: {"role": "dense"} for key in keys}
    assert found(model, overrides=advice, strict=True) == found(model)


def test_long_models_give_short_messages():
    model = nn.ModuleList(
        Holder(**{f"odd{i}": nn.Linear(4, i + 1) for i in range(40)}) for _ in "ab"
    )
    with pytest.warns(UserWarning) as warned:
        param_groups(model)
    assert len(str(warned[0].message)) < 3000 and "more kinds" in str(warned[0].message)


def test_weights_stored_in_out():
    from transformers.pytorch_utils import Conv1D

    assert found(Holder(a=Conv1D(6, 4)))["a.weight"] == ("dense", [T])


WRAPPERS = {
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
    "older weight_norm": nn.utils.weight_norm,  # which renames parameters in place
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", WRAPPERS)
def test_reparametrised_weights(name):
    """What the weight is made of has the weight's role; its lengths are other."""
    model = Holder(attention=Holder(), convolution=nn.Conv2d(3, 4, 2))
    for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
        setattr(model.attention, part, nn.Linear(8, 8, bias=False))
    model.attention.num_heads = 2
    before = found(model)
    for part in ("q_proj", "o_proj"):
        WRAPPERS[name](getattr(model.attention, part))
    WRAPPERS[name](model.convolution)
    roles = found(model)
    assert len(roles) == len(dict(model.named_parameters()))
    for kind in ("attention.q_proj", "attention.o_proj", "convolution"):
        of_weight = [v for key, v in roles.items() if key.startswith(kind) and v[0] != "other"]
        assert of_weight == [before[f"{kind}.weight"]]
    assert roles["attention.k_proj.weight"] == before["attention.k_proj.weight"]


def test_tensors_that_no_module_holds():
    """Some wrappers of other libraries make their tensors anew whenever they are listed."""

    class Fleeting(nn.Module):
        def named_parameters(self, *args, **kwargs):
            yield "weight", nn.Parameter(torch.zeros(4, 6))

    with pytest.warns(UserWarning, match=r"weight \[4, 6\]: other, as no module shows it"):
        param_groups(Fleeting())


def test_linear_with_tensors_of_its_own():
    model = nn.Linear(4, 6)
    model.adapter = nn.Parameter(torch.zeros(2, 4))
    assert found(model) == {
        "weight": ("dense", None),
        "bias": ("other", None),
        "adapter": ("other", None),
    }
    assert grades(model)["adapter"] == "assumed"


def test_sharing_and_cycles_cost_nothing():
    """2**40 paths lead to one matrix, and one module holds itself."""
    module = inner = nn.Linear(4, 4)
    for _ in range(40):
        module = nn.Sequential(module, module)
    assert list(found(module).values()) == [("dense", None), ("other", None)]
    module[0].back = module
    assert len(found(module)) == 2 and inner.weight is groups_of(module)[0]["params"][0]


def test_vectors_of_many_dimensions():
    model = Holder(token=nn.Parameter(torch.zeros(1, 1, 8)), gain=nn.Parameter(torch.ones(8, 1, 1)))
    assert set(found(model).values()) == {("other", None)}
    assert set(grades(model).values()) == {"declared"}


# What the user's own classes say


@dataclass
class OwnConfig:
    n_head: int = 4
    n_embd: int = 32


@pytest.mark.parametrize("name", ["config", "cfg", "args"])
@pytest.mark.parametrize("config", [OwnConfig(), SimpleNamespace(n_head=4)])
def test_configs_of_ones_own_are_read(name, config):
    """Where no class states it in its own attributes, on the model or on a part."""
    attention = Holder(c_attn=nn.Linear(32, 96), c_proj=nn.Linear(32, 32))
    for holder in (attention, model := Holder(attn=attention)):
        setattr(holder, name, config)
        assert found(model)["attn.c_attn.weight"] == ("attention", [{"heads": 12, "dim": -2}])
        assert found(model)["attn.c_proj.weight"] == ("attention", [{"heads": 4, "dim": -1}])
        delattr(holder, name)
    assert found(model)["attn.c_attn.weight"] == ("attention", None)


def test_a_cap_in_the_code_around_a_head():
    class Capped(nn.Module):
        def __init__(self):
            super().__init__()
            self.tok_emb, self.lm_head = nn.Embedding(97, 32), nn.Linear(32, 97, bias=False)

        def forward(self, x):
            return 30 * torch.tanh(self.lm_head(self.tok_emb(x)) / 30)

    groups = {g["role"]: g for g in param_groups(Capped())}
    assert groups["lm_head"]["center"] is False and groups["lm_head"]["evidence"] == ["recognised"]
