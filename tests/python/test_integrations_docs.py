"""The programs of docs/integrations.md run as they stand there, each after the first, and train."""

import os
import re
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from conftest import ROOT
from rule_helpers import one_thread  # noqa: F401
from torch.optim.optimizer import register_optimizer_step_pre_hook

TEXT = (ROOT / "docs" / "integrations.md").read_text()
SETUP, *PROGRAMS = re.findall(r"^```python\n(.*?)^```$", TEXT, flags=re.M | re.S)
TORCHRUN = "# torchrun --nproc-per-node 2 train.py\n"


def test_all_are_found():
    assert TEXT.count("```python") == 1 + len(PROGRAMS) and TEXT.count("```") == 2 * (
        1 + len(PROGRAMS)
    )
    assert "Qwen3ForCausalLM(config)" in SETUP
    sections = re.split("^## ", TEXT, flags=re.M)[1:]
    assert all("```python" in section for section in sections)


def name(program: str) -> str:
    heading = re.findall("^## (.*)$", TEXT[: TEXT.index(program)], flags=re.M)[-1]
    return f"{heading} {PROGRAMS.index(program)}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("program", PROGRAMS, ids=name)
def test_program(program, tmp_path, monkeypatch):
    if program.startswith(TORCHRUN):
        run_by_torchrun(program, tmp_path)
        return
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # models and data are on the CPU
    names = {"__name__": "__main__"}
    first, trained = {}, set()

    def note(optimizer, *_):
        for group in optimizer.param_groups:
            for p in group["params"]:
                first.setdefault(p, p.detach().clone())  # adapters come into being in the program
                if p.grad is not None:
                    trained.add(p)

    hook = register_optimizer_step_pre_hook(note)
    try:
        exec(compile(SETUP, "setup", "exec"), names)
        model = names["model"]
        first.update((p, p.detach().clone()) for p in model.parameters())
        exec(compile(program, "program", "exec"), names)
    finally:
        hook.remove()
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    left = []
    for name, p in model.named_parameters():
        assert torch.equal(p, first[p]) != (p in trained), name
        if p.requires_grad and p not in trained:
            left.append(name)
    # The frozen embedding is thawed at the end.
    assert left == ["model.embed_tokens.weight"] * ("embed_tokens.requires_grad_" in program)


def run_by_torchrun(program, folder):
    (folder / "train.py").write_text(SETUP + program)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += TORCHRUN.split()[2:]
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
