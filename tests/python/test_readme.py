"""The programs of README.md run as they stand there."""

import re

import erlangen
import pytest
import torch
from conftest import ROOT, CMake
from torch import nn

BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.M | re.S)


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
