"""peft: adapters and a module trained whole beside them, saved and taken up again."""

import copy

import erlangen
import peft
from integration_helpers import Text, language_model
from rule_helpers import one_thread  # noqa: F401
from state_helpers import Picture
from torch.utils.data import DataLoader

STEPS = 6


def start():
    config = peft.LoraConfig(
        target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"], r=3
    )
    model = peft.get_peft_model(language_model(), config)
    return model, erlangen.Equivariant(model, lr=0.01, weight_decay=0.1)


def train(model, optimizer, batches):
    for batch in batches:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()


def test_adapters_train_and_resume():
    batches = [*DataLoader(Text(), batch_size=4)]
    assert len(batches) == STEPS
    model, optimizer = start()
    assert {group["role"] for group in optimizer.param_groups} == {"lora", "lm_head"}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, optimizer, batches)
    for name, p in model.named_parameters():
        assert p.equal(before[name]) != p.requires_grad, name

    first, half = start()
    train(first, half, batches[: STEPS // 2])
    second, resumed = start()
    saved = copy.deepcopy((peft.get_peft_model_state_dict(first), half.state_dict()))
    peft.set_peft_model_state_dict(second, saved[0])
    resumed.load_state_dict(saved[1])
    train(second, resumed, batches[STEPS // 2 :])
    Picture(resumed).assert_same_tensors(Picture(optimizer))
