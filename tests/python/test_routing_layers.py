"""torch's own layers, and what no evidence decides."""

import erlangen
import pytest
import torch
import torch.nn.functional as F
from erlangen.routing import param_groups
from expected_roles import SIZES, columns, hide_names, rows
from routing_helpers import Holder, as_matrices, found
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


def test_undecided_are_listed_together_with_the_override():
    model = Holder(first=nn.Parameter(torch.zeros(3, 4)), second=nn.Linear(4, 4))
    model.second.table = nn.Parameter(torch.zeros(2, 5))
    model.scale = nn.Parameter(torch.ones(()))
    with pytest.raises(ValueError) as error:
        param_groups(model)
    message = str(error.value)
    assert "first [3, 4]" in message and "second.table [2, 5]" in message
    assert "scale" not in message
    assert "overrides={" in message and "'first': {'role': " in message
    overrides = {"first": {"role": "router"}, "second.*": {"role": "dense"}}
    roles = found(model, overrides=overrides)
    assert roles["first"] == ("router", None) and roles["scale"] == ("other", None)


def unknown_models():
    from transformers import (
        BloomConfig,
        BloomForCausalLM,
        CohereConfig,
        CohereForCausalLM,
        ElectraConfig,
        ElectraForMaskedLM,
        GPTBigCodeConfig,
        GPTBigCodeForCausalLM,
        MptConfig,
        MptForCausalLM,
        MT5Config,
        MT5ForConditionalGeneration,
    )

    size = SIZES["distinct"]
    yield BloomForCausalLM(BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=4))
    yield CohereForCausalLM(CohereConfig(**size))
    yield GPTBigCodeForCausalLM(GPTBigCodeConfig(vocab_size=40, n_embd=16, n_layer=1, n_head=4))
    yield ElectraForMaskedLM(ElectraConfig(**size, embedding_size=12))
    yield MptForCausalLM(MptConfig(vocab_size=40, d_model=16, n_heads=4, n_layers=1))
    size = dict(vocab_size=40, d_model=16, d_kv=4, d_ff=20, num_layers=1, num_heads=4)
    yield MT5ForConditionalGeneration(MT5Config(**size))


def test_families_without_a_table_are_refused():
    with torch.device("meta"):
        models = list(unknown_models())
    for model in models:
        with pytest.raises(ValueError) as error:
            param_groups(model)
        tables = [m for m in model.modules() if isinstance(m, nn.Embedding)]
        tables = [m for m in tables if m.embedding_dim != 4]  # a number a head is no vector
        sure = {id(m.weight) for m in [*tables, model.get_output_embeddings()]}
        for name, parameter in model.named_parameters():
            is_listed = f"  {name} {list(parameter.shape)}: " in str(error.value)
            is_sure = parameter.ndim < 2 or id(parameter) in sure
            assert is_listed != is_sure, name
        hide_names(model)
        with pytest.raises(ValueError):
            param_groups(model)


def test_weights_stored_in_out():
    from transformers.pytorch_utils import Conv1D

    assert found(Holder(a=Conv1D(6, 4)))["a.weight"] == ("dense", [T])


def test_reparametrised_weights():
    weight_norm = nn.utils.weight_norm  # the older one, which renames parameters in place
    with pytest.warns(FutureWarning):
        old = weight_norm(nn.Linear(4, 6))
    new = nn.utils.parametrizations.weight_norm(nn.Linear(4, 6))
    for model in (old, new):
        with pytest.raises(ValueError, match="weight"):
            param_groups(model)
    roles = found(new, overrides={"parametrizations.*": {"role": "other"}})
    assert set(roles.values()) == {("other", None)}


def test_tensors_that_no_module_holds():
    """Some wrappers of other libraries make their tensors anew whenever they are listed."""

    class Fleeting(nn.Module):
        def named_parameters(self, *args, **kwargs):
            yield "weight", nn.Parameter(torch.zeros(4, 6))

    with pytest.raises(ValueError, match=r"weight \[4, 6\]: no module shows it"):
        param_groups(Fleeting())


def test_linear_with_tensors_of_its_own():
    model = nn.Linear(4, 6)
    model.adapter = nn.Parameter(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="one weight matrix, this one 2"):
        param_groups(model)


def test_adaptive_softmax_is_undecided():
    with pytest.raises(ValueError, match="AdaptiveLogSoftmaxWithLoss"):
        param_groups(nn.AdaptiveLogSoftmaxWithLoss(8, 30, [10, 20]))
