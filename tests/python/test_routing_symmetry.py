"""Layouts are what the forward pass makes of a tensor: what leaves the function as it is, done to
the logical matrices that routing finds, leaves the model's outputs as they are."""

import pytest
import torch
from expected_families import FAMILIES, build
from oracles import logical_matrices
from routing_helpers import found

# Attention and the routers' softmax compute in float32 whatever the model's type is.
CLOSE = dict(rtol=1e-5, atol=1e-5)
RANDOM = torch.Generator()


def random_model(family, **config):
    """A model of which every tensor matters."""
    model = build(family, **config).double().eval()
    model.set_experts_implementation("eager")  # others refuse float64
    RANDOM.manual_seed(0)
    for name, p in model.named_parameters():
        is_norm = p.ndim == 1 and "norm" in name.lower()
        p.data = torch.randn(p.shape, generator=RANDOM).double() * 0.3 + (1 if is_norm else 0)
    return model


@torch.no_grad()
def outputs(model):
    tokens = torch.randint(40, (2, 7), generator=RANDOM.manual_seed(1))
    if "ViT" in type(model).__name__:
        result = model(pixel_values=torch.linspace(-1, 1, 576).double().reshape(2, 3, 8, 12))
    elif "T5" in type(model).__name__:
        result = model(input_ids=tokens, decoder_input_ids=tokens[:, :5])
    elif getattr(model.config, "add_cross_attention", False):
        states = torch.randn(2, 4, 16, generator=RANDOM).double()
        result = model(input_ids=tokens, encoder_hidden_states=states)
    else:
        result = model(input_ids=tokens)
    return result[0]


class Editor:
    """Changes a model by the logical matrices of its tensors."""

    def __init__(self, model):
        self.parameters = dict(model.named_parameters())
        self.layouts = {name: layout for name, (_, layout) in found(model).items()}

    def edit(self, name, function, is_input=False):
        """Replaces the list of matrices by function(matrices). The entries of a bias belong to the
        rows, so that they are one more column of a map's output side (not is_input)."""
        weight, layout = self.parameters[name], self.layouts[name]
        indices = logical_matrices(layout, tuple(weight.shape))
        matrices = [weight.data.flatten()[index] for index in indices]
        bias = None if is_input else self.parameters.get(name.removesuffix("weight") + "bias")
        if bias is not None:
            of_rows = [step for step in layout or [] if "transpose" not in step]
            rows = logical_matrices(of_rows, (bias.numel(), 1))
            columns = [bias.data[index] for index in rows]
            matrices = [torch.cat(pair, -1) for pair in zip(matrices, columns, strict=True)]
        changed = function(matrices)
        assert len(changed) == len(matrices)
        flat = weight.data.flatten()
        for i, (index, matrix) in enumerate(zip(indices, changed, strict=True)):
            if bias is not None:
                bias.data[rows[i]] = matrix[:, -1:]
                matrix = matrix[:, :-1]
            flat[index] = matrix
        weight.data = flat.reshape(weight.shape)


def heads(kind, *numbers):
    return [(kind, number) for number in numbers]


def separate(prefix, kv, names=("q_proj", "k_proj", "v_proj"), out="o_proj"):
    parts = zip("qkv", names, (4, kv, kv), strict=True)
    maps = {f"{prefix}{name}.weight": heads(kind, *range(n)) for kind, name, n in parts}
    return kv, maps, f"{prefix}{out}.weight"


ALL = range(4)
EACH = [(kind, head) for head in ALL for kind in "qkv"]
THREE = [*heads("q", *ALL), *heads("k", *ALL), *heads("v", *ALL)]
# Written from the forward passes: how many heads keys and values have, which head's query, key or
# value the rows of a tensor are, one after the other, and which tensor takes the heads' outputs.
BERT = ("self.query", "self.key", "self.value")
ATTENTION = {
    "llama": separate("model.layers.1.self_attn.", 2),
    "mistral": separate("model.layers.1.self_attn.", 2),
    "mixtral": separate("model.layers.1.self_attn.", 2),
    "qwen2_moe": separate("model.layers.1.self_attn.", 2),
    "granitemoe": separate("model.layers.1.self_attn.", 2),
    "bert": separate("bert.encoder.layer.1.attention.", 4, BERT, "output.dense"),
    "bert as decoder": separate("bert.encoder.layer.1.crossattention.", 4, BERT, "output.dense"),
    "t5": separate("decoder.block.1.layer.1.EncDecAttention.", 4, "qkv", "o"),
    "vit": separate("vit.layers.1.attention.", 4),
    "phi3": (
        2,
        {
            "model.layers.1.self_attn.qkv_proj.weight": [
                *heads("q", 0, 1, 2, 3),
                *heads("k", 0, 1),
                *heads("v", 0, 1),
            ]
        },
        "model.layers.1.self_attn.o_proj.weight",
    ),
    "gpt2": (
        4,
        {"transformer.h.1.attn.c_attn.weight": THREE},
        "transformer.h.1.attn.c_proj.weight",
    ),
    "gpt2 with cross attention": (
        4,
        {
            "transformer.h.1.crossattention.c_attn.weight": THREE[4:],
            "transformer.h.1.crossattention.q_attn.weight": THREE[:4],
        },
        "transformer.h.1.crossattention.c_proj.weight",
    ),
    "gpt_neox": (
        4,
        {"gpt_neox.layers.1.attention.query_key_value.weight": EACH},
        "gpt_neox.layers.1.attention.dense.weight",
    ),
    "falcon": (
        1,
        {
            "transformer.h.1.self_attention.query_key_value.weight": [
                *heads("q", 0, 1, 2, 3),
                ("k", 0),
                ("v", 0),
            ]
        },
        "transformer.h.1.self_attention.dense.weight",
    ),
    "falcon with keys per head": (
        4,
        {"transformer.h.1.self_attention.query_key_value.weight": EACH},
        "transformer.h.1.self_attention.dense.weight",
    ),
    "falcon in groups": (
        2,
        {
            "transformer.h.1.self_attention.query_key_value.weight": [
                *heads("q", 0, 1),
                ("k", 0),
                ("v", 0),
                *heads("q", 2, 3),
                ("k", 1),
                ("v", 1),
            ]
        },
        "transformer.h.1.self_attention.dense.weight",
    ),
}


def rotations(n, size):
    return [
        torch.linalg.qr(torch.randn(size, size, generator=RANDOM, dtype=torch.float64))[0]
        for _ in range(n)
    ]


@pytest.mark.parametrize("family", ATTENTION)
def test_heads(family):
    """Heads in reverse order, each group's queries longer and keys shorter, values rotated and
    the outputs turned back."""
    kv, maps, out = ATTENTION[family]
    config = {"bias": True} if "falcon" in family else {}
    model = random_model(family, **config)
    before = outputs(model)
    editor = Editor(model)
    size = editor.parameters[out].numel() // 16 // 4
    turn = rotations(kv, size)

    def changed(kind, head, matrix):
        group = head * kv // 4 if kind == "q" else head
        if kind == "v":
            return turn[group] @ matrix
        return matrix * 2.0 ** (group + 1 if kind == "q" else -group - 1)

    for name, labels in maps.items():

        def reverse(matrices, labels=labels):
            assert len(matrices) == len(labels)
            of = dict(zip(labels, matrices, strict=True))
            last = {"q": 3, "k": kv - 1, "v": kv - 1}
            return [changed(kind, last[kind] - n, of[kind, last[kind] - n]) for kind, n in labels]

        editor.edit(name, reverse)
    assert not torch.allclose(outputs(model), before, **CLOSE)

    def back(matrices):
        return [matrices[3 - n] @ turn[(3 - n) * kv // 4].mT for n in ALL]

    editor.edit(out, back, is_input=True)
    torch.testing.assert_close(outputs(model), before, **CLOSE)


@pytest.mark.parametrize("family", ["deepseek_v3", "deepseek_v3 with full queries"])
def test_latent_attention(family):
    """As above; queries against the heads' own keys and against the shared rotary key are scaled
    apart, and the latent itself by the norm's gain."""
    model = random_model(family)
    before = outputs(model)
    editor = Editor(model)
    prefix = "model.layers.1.self_attn."
    queries = "q_b_proj" if family == "deepseek_v3" else "q_proj"
    turn = rotations(4, 8)
    reverse = [(n, part) for n in reversed(ALL) for part in (0, 1)]
    editor.edit(
        f"{prefix}{queries}.weight",
        lambda m: [m[2 * n + part] * (4.0 if part else 2.0 ** (n + 1)) for n, part in reverse],
    )
    editor.edit(
        f"{prefix}kv_b_proj.weight",
        lambda m: [
            turn[n] @ m[2 * n + 1] if part else m[2 * n] * 2.0 ** (-n - 1) for n, part in reverse
        ],
    )
    # The norm of the latent takes out its length, but for the eps.
    model.model.layers[1].self_attn.kv_a_layernorm.variance_epsilon *= 9.0
    editor.edit(f"{prefix}kv_a_proj_with_mqa.weight", lambda m: [m[0] * 3.0, m[1] / 4.0])
    assert not torch.allclose(outputs(model), before, **CLOSE)
    editor.edit(
        f"{prefix}o_proj.weight",
        lambda m: [m[n] @ turn[n].mT for n in reversed(ALL)],
        is_input=True,
    )
    torch.testing.assert_close(outputs(model), before, **CLOSE)


# Families of which the MLPs or experts multiply a gate with what the second map gives.
UNGATED = ("gpt2", "gpt_neox", "falcon", "bert", "vit", "t5")


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "mamba"])
def test_units(family):
    """The units of every MLP and of every expert in reverse order; where there are gates, what they
    multiply twice as large and the output half as large."""
    model = random_model(family)
    before = outputs(model)
    editor = Editor(model)
    is_gated = family == "t5 with gates" or not family.startswith(UNGATED)
    roles = {name: role for name, (role, _) in found(model).items()}
    inner = [name for name, role in roles.items() if role in ("mlp_in", "expert_in")]
    outer = [name for name, role in roles.items() if role in ("mlp_out", "expert_out")]
    is_fused = {name: {"heads": 2, "dim": -2} in (editor.layouts[name] or []) for name in inner}
    separate_gates = [name for name in inner if not is_fused[name]][::2] if is_gated else inner

    def reverse(name):
        def function(matrices):
            gates = is_fused[name] or name in separate_gates
            scales = [1.0, 2.0] if is_fused[name] else [1.0 if gates else 2.0]
            return [m.flip(0) * scales[i % len(scales)] for i, m in enumerate(matrices)]

        return function

    for name in inner:
        editor.edit(name, reverse(name))
    assert not torch.allclose(outputs(model), before, **CLOSE)
    factor = 0.5 if is_gated else 1.0
    for name in outer:
        editor.edit(name, lambda ms: [m.flip(1) * factor for m in ms], is_input=True)
    assert inner and outer
    torch.testing.assert_close(outputs(model), before, **CLOSE)


def test_state_space():
    """Mamba's channels and states in reverse order, the gates with them; the time step's low-rank
    space rotated."""
    model = random_model("mamba")
    for layer in model.backbone.layers:  # a time step in which something is left of the state
        layer.mixer.dt_proj.bias.data -= 2.0
    before = outputs(model)
    editor = Editor(model)
    prefix = "backbone.layers.1.mixer."
    editor.edit(f"{prefix}in_proj.weight", lambda m: [m[0].flip(0), m[1].flip(0)])
    (turn,) = rotations(1, 3)
    editor.edit(
        f"{prefix}x_proj.weight",
        lambda m: [turn @ m[0].flip(1), m[1].flip(0, 1), m[2].flip(0, 1)],
    )
    # Of its three columns and the bias.
    editor.edit(
        f"{prefix}dt_proj.weight",
        lambda m: [torch.cat([m[0][:, :3] @ turn.mT, m[0][:, 3:]], 1).flip(0)],
    )
    mixer = model.backbone.layers[1].mixer
    mixer.A_log.data = mixer.A_log.data.flip(0, 1)
    mixer.D.data = mixer.D.data.flip(0)
    mixer.conv1d.weight.data = mixer.conv1d.weight.data.flip(0)
    mixer.conv1d.bias.data = mixer.conv1d.bias.data.flip(0)
    assert not torch.allclose(outputs(model), before, **CLOSE)
    editor.edit(f"{prefix}out_proj.weight", lambda m: [m[0].flip(1)], is_input=True)
    torch.testing.assert_close(outputs(model), before, **CLOSE)
