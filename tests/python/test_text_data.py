"""examples/text_data.py: labels, batches, documents and tokenizer, alone and in tiny runs."""

import random
import shutil
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import models
import pytest
import text_data
import torch
import train_lm
from train_lm_helpers import TINY, surroundings  # noqa: F401

# Labels and batches


def test_the_label_of_position_t_is_token_t_plus_1():
    tokens = torch.arange(100)
    for windows in (
        text_data.Batches(tokens, batch_size=3, seq_len=8, seed=0)[1],
        *text_data.validation_batches(tokens, batch_size=3, seq_len=8, count=2),
    ):
        input_ids, labels = text_data.next_token(windows)
        assert input_ids.shape == labels.shape == (len(windows), 8)
        assert torch.equal(labels, input_ids + 1)


@pytest.mark.parametrize("arch", models.ARCHITECTURES)
def test_the_loss_is_that_of_transformers_for_unshifted_labels(arch):
    model = models.build_model(arch, 50, hidden_size=64, num_hidden_layers=2, seq_len=12)
    windows = torch.randint(0, 50, (3, 13), generator=torch.Generator().manual_seed(0))
    expected = model(input_ids=windows, labels=windows).loss
    torch.testing.assert_close(train_lm.loss_of(model, windows), expected)


def test_a_trained_model_predicts_the_next_token():
    """End to end: on a cycle of 7 tokens, t + 1 is learnt, and t + 2 is another token."""
    cycle = torch.tensor([3, 0, 5, 1, 6, 2, 4])
    tokens = cycle.repeat(60)
    batches = text_data.Batches(tokens, batch_size=4, seq_len=14, seed=0)
    model = models.build_model("qwen3", 7, hidden_size=64, num_hidden_layers=1, seq_len=14)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for i in range(30):
        train_lm.loss_of(model, batches[i]).backward()
        optimizer.step()
        optimizer.zero_grad()
    predictions = model(input_ids=tokens[None, :14]).logits.argmax(-1)[0]
    assert torch.equal(predictions, tokens[1:15])


def test_an_epoch_has_each_token_once_as_a_label():
    tokens = torch.arange(16 * 6 + 1)
    batches = text_data.Batches(tokens, batch_size=2, seq_len=16, seed=5)
    epochs = [
        torch.cat([text_data.next_token(batches[e * 3 + i])[1].flatten() for i in range(3)])
        for e in range(2)
    ]
    for labels in epochs:
        assert torch.equal(labels.sort().values, tokens[1:])
    assert not torch.equal(*epochs)


def test_a_batch_depends_on_its_number_and_seed_only():
    tokens = torch.arange(1000)

    def batches(seed):
        return text_data.Batches(tokens, batch_size=4, seq_len=10, seed=seed)

    read_on = batches(1)
    for i in range(60):  # beyond two epochs
        last = read_on[i]
    assert torch.equal(last, batches(1)[59])
    assert not torch.equal(last, batches(2)[59])


# Text


def test_validation_and_training_documents_are_disjoint():
    documents = [f"document {i}\n" for i in range(100)]
    train, validation = text_data.split([*documents, *documents[:50]])  # copies must not leak
    assert (len(train), len(validation)) == (95, 5)
    assert sorted(train + validation) == sorted(documents)
    assert (train, validation) == text_data.split(documents[::-1])


def test_few_files_are_held_out_in_parts():
    lines = [f"line {i}\n" for i in range(400)]
    train, validation = text_data.split(["".join(lines[:300]), "".join(lines[300:])])
    assert sorted("".join(train + validation).splitlines(True)) == sorted(lines)
    assert not set("".join(train).splitlines()) & set("".join(validation).splitlines())
    assert len("".join(validation).splitlines()) == pytest.approx(20, abs=12)


def test_the_standard_library_is_the_default_text():
    documents = text_data.standard_library()
    import argparse

    assert Path(argparse.__file__).read_text(encoding="utf-8") in documents
    assert Path(torch.__file__).read_text(encoding="utf-8") not in documents  # site-packages
    assert documents == text_data.standard_library()


class Rows:
    """A data set as `datasets` streams one: nothing is there before it is asked for."""

    def __init__(self, rows):
        self.rows, self.asked = rows, []

    def load_dataset(self, name, config, *, split, streaming):
        self.asked.append((name, config, split, streaming))
        return self

    def take(self, count):
        self.asked.append(count)
        return iter(self.rows[:count])


@pytest.fixture
def rows(monkeypatch):
    choose = random.Random(0)
    stream = Rows([{"id": i, "body": " ".join(choose.choices("abcdef", k=200))} for i in range(40)])
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=stream.load_dataset))
    return stream


@pytest.mark.parametrize("asked, got", [(30, 30), (50, 40)])
def test_documents_of_a_data_set(rows, asked, got):
    documents = text_data.hugging_face("some/set", "en", "body", asked)
    assert documents == [row["body"] for row in rows.rows[:got]]
    assert rows.asked == [("some/set", "en", "train", True), asked]


def test_a_tiny_run_on_a_data_set(rows):
    argv = "--dataset some/set --text-column body --documents 30 --optimizer adamw --out out"
    results = train_lm.main([*TINY, *argv.split()])
    assert rows.asked == [("some/set", None, "train", True), 30]
    metrics = results["qwen3"]["adamw"]
    assert metrics[-1]["val_loss"] < metrics[0]["val_loss"]


@pytest.mark.parametrize("column", ["text", "id"])  # one that is not there, one of numbers
def test_a_wrong_text_column_is_named(rows, column):
    with pytest.raises(SystemExit, match=f"--text-column {column}: .* some/set, .*'body', 'id'"):
        train_lm.main(
            [*TINY, *f"--optimizer adamw --dataset some/set --text-column {column}".split()]
        )


def test_a_tiny_run_on_the_default_text(tmp_path, monkeypatch):
    """The standard library, here one of a few modules, so that its tokenizer is quick to train."""
    modules = ["argparse.py", "textwrap.py", "json/encoder.py"]
    for name in [*modules, "test/skipped.py"]:
        (tmp_path / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        source = Path(sysconfig.get_path("stdlib"), name) if name in modules else __file__
        shutil.copy(source, tmp_path / "lib" / name)
    monkeypatch.setattr(sysconfig, "get_path", {"stdlib": str(tmp_path / "lib")}.__getitem__)
    texts = []
    prepare = text_data.prepare
    monkeypatch.setattr(text_data, "prepare", lambda d, size: texts.append(d) or prepare(d, size))
    results = train_lm.main([*TINY, "--out", "out"])
    assert texts == [[(tmp_path / "lib" / name).read_text() for name in sorted(modules)]]
    assert list(results["qwen3"]) == ["equivariant", "adamw"]
    for metrics in results["qwen3"].values():
        assert metrics[-1]["val_loss"] < metrics[0]["val_loss"]


def test_the_tokenizer_keeps_every_byte_and_is_cached(monkeypatch):
    documents = [f"def f{i}(x):\n\treturn 'ä {i} 数' # {i * 7919}\n" for i in range(40)]
    text = text_data.prepare(documents, 300)
    assert text.vocab_size <= 300
    train, validation = text_data.split(documents)
    tokenizer = text_data.train_tokenizer(train, 300)
    for ids, part in ((text.train, train), (text.validation, validation)):
        decoded = tokenizer.decode(ids.tolist(), skip_special_tokens=False)
        assert decoded == "".join(document + text_data.END_OF_TEXT for document in part)

    monkeypatch.setattr(text_data, "train_tokenizer", None)  # any call would fail now
    again = text_data.prepare(documents, 300)
    assert torch.equal(again.train, text.train) and torch.equal(again.validation, text.validation)
    with pytest.raises(TypeError):
        text_data.prepare([*documents, "one more"], 300)


def test_the_end_token_written_in_a_text_is_plain_text():
    tokenizer = text_data.train_tokenizer(["some text"] * 3, 300)
    ids = text_data.encode(tokenizer, [f"a {text_data.END_OF_TEXT} b"])
    assert (ids == 0).sum() == 1 and ids[-1] == 0
