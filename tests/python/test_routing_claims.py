"""What routing claims is what models compute: heads, neurons and experts moved by the groups'
layouts leave the outputs, and a claim that is wrong is found."""

import claims
import expected_families
import pytest
import routing_claims
import tiny_models
import torch
import transformers
from erlangen import param_groups

TRANSPOSE = {"transpose": True}
HALVES = {"heads": 2, "dim": -2}
INTERLEAVED = [{"pairs": "interleaved", "dim": -2}, {"heads": 2, "dim": -1}]


def rows(n):
    return [{"heads": n, "dim": -2}]


def columns(n):
    return [{"heads": n, "dim": -1}]


def small(family, **config):
    """One of the models whose layouts are written by hand."""
    model = expected_families.build(family, **config).eval()
    model.set_experts_implementation("eager")  # others refuse float64
    tiny_models.randomise(model)
    return claims.Model(model.double(), tiny_models.runner(tiny_models.transformers_inputs(model)))


def with_claims(groups, changes):
    """The groups, with other roles and layouts of the tensors whose names end so."""
    result = []
    for group in groups:
        for name, p in zip(group["param_names"], group["params"], strict=True):
            one = {"role": group["role"], "layout": group.get("layout")}
            for end, change in changes.items():
                one |= change if name.endswith(end) else {}
            result.append(one | {"param_names": [name], "params": [p]})
    return result


def statuses(model, changes=None):
    groups = with_claims(param_groups(model.model), changes or {})
    return {(o.kind, o.status) for o in claims.check(model, groups)}


HEADS, NEURONS, EXPERTS = (("heads", "right"), ("neurons", "right"), ("experts", "right"))
RIGHT = {
    "llama": {HEADS, NEURONS},
    "phi3": {HEADS, NEURONS},
    "gpt2": {HEADS, NEURONS},
    "falcon in groups": {HEADS, NEURONS},
    "gpt_neox": {HEADS, NEURONS},
    "t5": {HEADS, NEURONS},
    "vit": {HEADS, NEURONS},
    "deepseek_v3": {HEADS, NEURONS, EXPERTS},
    "gpt_oss": {HEADS, NEURONS, EXPERTS},
    "qwen2_moe": {HEADS, NEURONS, EXPERTS},
}


@pytest.mark.parametrize("family", RIGHT)
def test_claims_that_are_right(family):
    assert statuses(small(family)) == RIGHT[family]


ATTENTION = ("q_proj.weight", "k_proj.weight", "v_proj.weight")


def separate(q, kv):
    numbers = dict(zip(ATTENTION, (q, kv, kv), strict=True))
    layouts = {name: {"layout": rows(n)} for name, n in numbers.items()}
    return layouts | {"o_proj.weight": {"layout": columns(q)}}


def fused(n):
    """GPT-2's, with n heads."""
    layouts = {"c_attn.weight": rows(3 * n), "attn.c_proj.weight": columns(n)}
    return {name: {"layout": [TRANSPOSE, *layout]} for name, layout in layouts.items()}


# What is claimed of four heads, two of keys and values; of four; of one; of gates and ups; of
# experts.
WRONG = {
    "twice the heads": ("llama", {}, separate(8, 4), "heads"),
    "half the heads": ("vit", {}, separate(2, 2), "heads"),
    "heads of keys and values that are not there": ("llama", {}, separate(4, 4), "heads"),
    "outputs by rows": ("vit", {}, {"o_proj.weight": {"layout": rows(4)}}, "heads"),
    "twice the heads without positions": ("gpt2", {}, fused(8), "heads"),
    "half the heads without positions": ("gpt2", {}, fused(2), "heads"),
    "heads of one": ("gpt2", {"num_attention_heads": 1}, fused(4), "heads"),
    "no transpose": ("gpt2", {}, {"c_attn.weight": {"layout": rows(12)}}, "layout"),
    "one matrix of gate and up": ("phi3", {}, {"gate_up_proj.weight": {"layout": None}}, "neurons"),
    "interleaved gate and up": (
        *("phi3", {}, {"gate_up_proj.weight": {"layout": INTERLEAVED}}, "neurons"),
    ),
    "concatenated experts": (
        *("gpt_oss", {}, {"gate_up_proj": {"layout": [TRANSPOSE, HALVES]}}, "neurons"),
    ),
    "the way back for the way in": (
        "vit",
        {},
        {"fc1.weight": {"role": "mlp_out"}, "fc2.weight": {"role": "mlp_in"}},
        "neurons",
    ),
    "experts' rows for columns": (
        "qwen2_moe",
        {},
        {"down_proj": {"layout": [TRANSPOSE]}},
        "neurons",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_claims_that_are_wrong(case):
    family, config, changes, kind = WRONG[case]
    model = small(family, **config)
    found = statuses(model, changes)
    assert found & {(kind, "wrong"), (kind, "unsure"), (kind, "untested")}


def test_router_of_other_experts():
    """Rows of a router that are in another order than the experts."""
    model = small("mixtral")
    experts = type(model.model.model.layers[0].mlp.experts)
    forward = experts.forward

    def shuffled(self, states, index, weights):
        return forward(self, states, index.roll(1, -1) * 0, weights)

    experts.forward = shuffled
    try:
        model.before = model.outputs()
        assert ("experts", "wrong") in statuses(model)
    finally:
        experts.forward = forward


def test_what_is_not_reached_is_not_tested():
    config = transformers.Qwen3Config(
        **dict(hidden_size=32, intermediate_size=40, num_hidden_layers=1, vocab_size=64),
        **dict(num_attention_heads=4, num_key_value_heads=2, head_dim=12),
    )
    whole = transformers.Qwen3ForCausalLM(config).double().eval()
    tiny_models.randomise(whole)
    model = claims.Model(whole, lambda m: [m.lm_head.weight[:, :2]])
    outcomes = claims.check(model, param_groups(whole))
    assert {(o.kind, o.status) for o in outcomes} == {
        ("heads", "untested"),
        ("neurons", "untested"),
    }


class QueriesFromElsewhere(torch.nn.Module):
    """Keys and values of an attention whose queries are made by another module."""

    def __init__(self):
        super().__init__()
        self.queries = torch.nn.Conv1d(24, 24, 3, padding=1)
        self.attn = torch.nn.Module()
        self.attn.num_heads = 4
        self.attn.kv = torch.nn.Linear(24, 48)
        self.attn.proj = torch.nn.Linear(24, 24)

    def forward(self, x):
        q = self.queries(x.mT).mT.unflatten(-1, (4, 6)).transpose(1, 2)
        k, v = (t.unflatten(-1, (4, 6)).transpose(1, 2) for t in self.attn.kv(x).chunk(2, -1))
        scores = (q @ k.mT).softmax(-1)
        return self.attn.proj((scores @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("heads, status", [(4, "untested"), (8, "wrong"), (2, "wrong")])
def test_heads_whose_queries_come_from_elsewhere(heads, status):
    torch.manual_seed(0)
    whole = QueriesFromElsewhere().double()
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    model = claims.Model(whole, lambda m: [m(x)])
    changes = {
        "attn.kv.weight": {"role": "attention", "layout": rows(2 * heads)},
        "attn.proj.weight": {"role": "attention", "layout": columns(heads)},
    }
    assert statuses(model, changes) == {("heads", status)}


def test_changes_leave_no_trace():
    model = small("qwen2_moe")
    before = {name: t.clone() for name, t in model.tensors.items()}
    statuses(model)
    assert all(torch.equal(before[name], t) for name, t in model.tensors.items())


# Drawn once by seed from what the program draws from, and what differs most from them.
LIBRARIES = {
    "transformers": [
        *("gpt2", "qwen3", "bert", "mixtral", "bloom", "gpt_oss", "qwen3_next", "umt5", "vilt"),
        *("modernbert", "deepseek_v3", "distilbert"),
    ],
    "timm": ["test_vit", "test_convnext", "test_mambaout"],
    "torchvision": ["vit", "swin"],
    "diffusers": ["DiTTransformer2DModel", "FluxTransformer2DModel", "SD3Transformer2DModel"],
}


@pytest.mark.filterwarnings("ignore")  # of what is assumed
@pytest.mark.parametrize(
    "library, name", [(library, name) for library, names in LIBRARIES.items() for name in names]
)
def test_models_by_their_libraries(library, name):
    """What the program does with each model that it draws."""
    pytest.importorskip(library)
    result = routing_claims.examine(library, name)
    assert result["status"] == "run", result
    assert [b for b in result["blocks"] if b["status"] in ("wrong", "unsure")] == []
    assert sum(b["status"] == "right" for b in result["blocks"]) >= 2


def test_summary():
    blocks = [{"status": "right"}, {"status": "wrong"}, {"status": "untested"}]
    results = {
        "a": {"status": "run", "blocks": blocks},
        "b": {"status": "run", "blocks": blocks[2:]},
        "c": {"status": "raised", "error": ""},
    }
    summary = routing_claims.summary(results)
    assert summary["run"] == 2 and summary["with blocks tested"] == 1 and summary["raised"] == 1
    assert [summary[key] for key in routing_claims.STATUS] == [1, 1, 0, 2]
