"""What tests of the example programs share: a tiny run's options, and surroundings of its own."""

import pytest
import torch

TINY = "--hidden-size 64 --num-hidden-layers 2 --vocab-size 300 --batch-size 2 --seq-len 16".split()
TINY += "--steps 6 --warmup-steps 2 --eval-every 3 --eval-batches 1 --device cpu".split()


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch, tmp_path_factory):
    """A cache of the tests' own; what a run sets for the whole process is put back."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.chdir(tmp_path)
    threads, rng = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(rng)
