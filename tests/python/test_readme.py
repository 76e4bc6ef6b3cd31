"""The programs of README.md run as they stand there, and its figures are those of the results."""

import json
import re

import erlangen
import pytest
import torch
from conftest import ROOT, CMake
from torch import nn

TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, flags=re.M | re.S)


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


class LanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.inner = nn.Linear(8, 8)
        self.lm_head = nn.Linear(8, 11, bias=False)

    def forward(self, tokens):
        return self.lm_head(self.inner(self.embedding(tokens)))


def test_python(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = LanguageModel()
    names = {"torch": torch, "model": model}
    names |= {"W": nn.Parameter(torch.randn(6, 4)), "norms": [nn.Parameter(torch.ones(4))]}
    making, saving = blocks("python")
    exec(making, names)
    assert "lm_head.weight" in capsys.readouterr().out
    rules = {group["role"]: group["rule"] for group in names["groups"]}
    assert rules["lm_head"] == "right_spectral" and rules["embedding"] == "row_norm"
    names["W"].grad = torch.randn(6, 4)
    names["optimizer"].step()
    exec(saving, names)
    momentum = names["optimizer"].state[names["W"]]["momentum_buffer"]
    saved = torch.load("checkpoint.pt")["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(momentum, saved) and momentum.any()


@pytest.mark.slow
def test_cpp(tmp_path):
    (program,), (find,) = blocks("cpp"), blocks("cmake")
    includes, statements = program.split("\n\n", 1)
    (tmp_path / "main.cpp").write_text(f"""{includes}
    int main() {{
      torch::nn::Sequential model(torch::nn::Linear(4, 8), torch::nn::ReLU(),
                                  torch::nn::Linear(8, 3));
      const auto loss = model->forward(torch::randn({{5, 4}})).square().mean();
      {statements}
      torch::load(optimizer, "optimizer.pt");
      return optimizer.state().size() == 4 ? 0 : 1;
    }}""")
    (tmp_path / "CMakeLists.txt").write_text(f"""
cmake_minimum_required(VERSION 3.25)
project(app CXX)
add_executable(app main.cpp)
{find}""")
    cmake, build = CMake(), tmp_path / "build"
    cmake.configure(tmp_path, build, f"-DCMAKE_PREFIX_PATH={erlangen.cmake_prefix_path}")
    cmake.build(build)
    cmake.run(build / "app", cwd=tmp_path)


def table(heading: str) -> list[list[str]]:
    """The rows of the first table under a heading, as cells."""
    section = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.*) \|$", section, flags=re.M)
    return [row.split(" | ") for row in rows[1:]]


def report(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def results(name: str) -> dict:
    return report(name)["results"]


MODELS = {
    "all parameters of a Qwen3 of 24 layers of 256": "Qwen3, 24 layers of 256",
    "the same of OLMoE-1B-7B's shape, an eighth as wide": "OLMoE-1B-7B, 12 of its 16 layers",
}
MACHINES = ("xeon", "epyc")
BESIDE = {"`torch.optim.Muon`": "torch_muon", "`AdamW(fused=True)`": "adamw_fused"}


def test_figures_of_speed():
    machines = [(results(f"steps_cpu_{m}"), results(f"train_step_cpu_{m}")) for m in MACHINES]
    expected = []
    for name, beside, *_ in table("Speed"):
        expected.append([name, beside])
        for steps, models in machines:
            if name in MODELS:
                result, other = models[MODELS[name]], "torch_muon_and_adamw_fused"
            else:
                case = name.replace("`", "").replace(",", "").replace(" of ", " x ")
                result, other = steps[case.replace("×", "x")], BESIDE[beside]
            expected[-1] += [
                f"{result[f'ratio_to_{other}']:.1f}",
                f"{result['share_of_floor']:.2f}",
            ]
    assert expected and table("Speed") == expected


def test_speed_of_bfloat16():
    assert f"AMX, about {report('polar_cpu_xeon')['bfloat16_over_float32']:.0f} times" in TEXT


def test_figures_of_training():
    names = {"Qwen3": "qwen3", "Gemma 3": "gemma3", "OLMoE": "olmoe", "gpt-oss": "gpt_oss"}
    losses = results("compare")
    expected = [
        [name, *(f"{losses[arch][o]['val_loss']:.3f}" for o in ("equivariant", "adamw"))]
        for name, arch in names.items()
    ]
    assert table("Results") == expected
