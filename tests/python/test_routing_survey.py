"""The survey of what routing makes of public models counts what it says, at a few models."""

import json

import pytest
import routing_survey
import survey_models
import torch
from routing_helpers import Holder
from stubborn_worker import stubborn
from torch import nn


def test_report(tmp_path):
    out = tmp_path / "report.json"
    words = ["--library", "transformers", "--only", "^(qwen3|timm_backbone)$", "--out", str(out)]
    report = routing_survey.main(words)
    assert json.loads(out.read_text()) == report
    assert {"machine", "date", "commit", "versions", "command"} <= report.keys()
    assert "transformers" in report["versions"]
    result = report["results"]["transformers"]
    assert result["models"]["qwen3"]["class"] == "Qwen3ForCausalLM"
    assert result["models"]["timm_backbone"]["status"] == "not built"
    for key in ("all", "causal"):
        counts = {k: result[key][k] for k in ("routed", "raised", "traceback")}
        assert counts == {"routed": 1, "raised": 0, "traceback": 0}
        assert sum(result[key][grade] for grade in routing_survey.GRADES) == pytest.approx(1)


def test_place():
    inner = Holder(maps=nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]), raw=nn.ParameterList())
    inner.raw.append(nn.Parameter(torch.zeros(2, 2)))
    model = nn.Sequential(nn.Linear(2, 2), Holder(inner=inner, gain=inner))
    kind = "routing_helpers.Holder"
    assert (
        routing_survey.place(model, "1.inner.maps.1.weight") == f"{kind} . maps.*.weight (Linear)"
    )
    assert routing_survey.place(model, "1.inner.raw.0") == f"{kind} . raw.* (ParameterList)"
    assert routing_survey.place(model, "0.weight") == "container.Sequential . *.weight (Linear)"


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 2))


def test_place_of_a_layer_of_ones_own():
    """Its holder says more than the layer."""
    model = Holder(scale=Scale())
    expected = "routing_helpers.Holder . scale.weight (Scale)"
    assert routing_survey.place(model, "scale.weight") == expected
    assert routing_survey.place(Scale(), "weight") == "test_routing_survey.Scale . weight"


def test_shares():
    """Of matrix elements only; groups without reasons are of a routing that knew all."""
    model = Holder(a=nn.Linear(4, 4), b=nn.Linear(4, 12, bias=False))
    p = dict(model.named_parameters())
    names = ["a.weight", "a.bias", "b.weight"]
    group = {"role": "dense", "params": [p[n] for n in names], "param_names": names}
    grades, assumed = routing_survey.shares(model, [group])
    assert grades == {"declared": 1, "recognised": 0, "assumed": 0} and not assumed
    group |= {"evidence": ["recognised", "assumed", "assumed"], "why": ["", "", "type"]}
    grades, assumed = routing_survey.shares(model, [group])
    assert grades == {"declared": 0, "recognised": 0.25, "assumed": 0.75}
    (entry,) = assumed.values()
    assert entry == {"role": "dense", "shape": [12, 4], "why": "type", "tensors": 1, "share": 0.75}
    places = routing_survey.merged(
        {"x": {"assumed_at": assumed}, "y": {"assumed_at": assumed}, "z": {"status": "raised"}}
    )
    (entry,) = places.values()
    assert (entry["models"], entry["mean_share"], entry["model"]) == (2, 0.75, "x")


def test_means_count_what_is_not_routed():
    results = [
        {"status": "routed", "declared": 0.5, "recognised": 0.5, "assumed": 0.0},
        {"status": "raised"},
        {"status": "not built"},
    ]
    means = routing_survey.mean_shares(results)
    assert (means["declared"], means["recognised"], means["not built"]) == (0.25, 0.25, 1)


def test_worker_survives_its_models():
    worker = routing_survey.Worker(stubborn, "any")
    assert worker.examine("routed", 60) == {"status": "routed"}
    assert worker.examine("dies", 60) == {"status": "traceback", "error": "the process died"}
    assert worker.examine("routed", 60) == {"status": "routed"}
    assert worker.examine("hangs", 0.1)["error"] == "no answer in 0.1 s"
    worker.close()


def test_samples_are_always_the_same():
    sample = survey_models.names("transformers", sample=5)
    assert len(sample) == 5 and sample == survey_models.names("transformers", sample=5)
    assert set(sample) <= set(survey_models.names("transformers"))
