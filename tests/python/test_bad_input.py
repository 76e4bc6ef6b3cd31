"""What bad option values get, wherever a value can enter.

Every error names the group, the option, the value and what is allowed, and comes before anything
has changed. Errors of parameters, gradients and state dicts: test_bad_tensors.py.
"""

import copy
import math

import erlangen
import pytest
import torch
from state_helpers import Picture, gradients, run, set_grads

nan, inf = math.nan, math.inf
HEADS = [{"heads": 2, "dim": -2}]


class NoNumber:
    """As numpy's arrays: with a number's methods, which refuse."""

    def __repr__(self):  # the test's name, the same in every process
        return "NoNumber()"

    def __index__(self):
        raise TypeError("not one element")

    __float__ = __index__


# option, value, error, what the message must contain besides the option's name.
VALUES = [
    ("rule", "polar", ValueError, ["polar", "spectral", "row_norm", "adamw"]),
    ("rule", "", ValueError, ["spectral", "adamw"]),
    ("rule", 3, TypeError, ["3", "str"]),
    ("order", "polar", ValueError, ["polar", "row_then_polar", "polar_then_row"]),
    ("decay", "coupled", ValueError, ["coupled", "decoupled", "cautious"]),
    ("support", "rows", ValueError, ["rows", "all", "gradient"]),
    ("momentum_order", "last", ValueError, ["last", "momentum_first", "polar_first"]),
    ("adjust_lr_fn", "muon", ValueError, ["muon", "match_rms_adamw", "original", "none"]),
    ("ns_method", "fast", ValueError, ["fast", "auto", "standard", "gram", "exact"]),
    ("ns_dtype", "float8", ValueError, ["float8", "float32", "bfloat16", "float16"]),
    ("ns_dtype", torch.bfloat16, TypeError, ["torch.bfloat16", "its name", "bfloat16"]),
    ("state_dtype", "float16", ValueError, ["float16", "auto", "bfloat16"]),
    ("lr", -1e-3, ValueError, ["-0.001", ">= 0"]),
    ("lr", nan, ValueError, ["nan", "finite"]),
    ("lr", inf, ValueError, ["inf", "finite"]),
    ("lr", "fast", TypeError, ["fast", "number"]),
    ("lr", None, TypeError, ["None", "number"]),
    ("lr", True, TypeError, ["True", "number"]),
    ("lr", [1e-3], TypeError, ["0.001", "number"]),
    ("lr", 1j, TypeError, ["1j", "float"]),
    ("lr", torch.tensor(-1e-3), ValueError, ["-0.001", ">= 0"]),
    ("lr", torch.tensor([1e-3, 2e-3]), ValueError, ["0.0010, 0.0020", "one real number"]),
    ("lr", torch.tensor(1j), ValueError, ["1.j", "one real number"]),
    ("lr", torch.tensor(True), ValueError, ["True", "one real number"]),
    ("lr", NoNumber(), TypeError, ["NoNumber", "float"]),
    ("lr", ..., TypeError, ["Ellipsis", "float"]),
    ("update_scale", -1.0, ValueError, ["-1", ">= 0"]),
    ("update_scale", nan, ValueError, ["nan", "finite"]),
    ("weight_decay", -0.1, ValueError, ["-0.1", ">= 0"]),
    ("weight_decay", inf, ValueError, ["inf", "finite"]),
    ("momentum", 1.0, ValueError, ["1", "[0, 1)"]),
    ("momentum", -0.1, ValueError, ["-0.1", "[0, 1)"]),
    ("momentum", nan, ValueError, ["nan", "[0, 1)"]),
    ("betas", (0.9, 1.0), ValueError, ["1", "[0, 1)"]),
    ("betas", (-0.5, 0.9), ValueError, ["-0.5", "[0, 1)"]),
    ("betas", (0.9,), TypeError, ["[0.9]", "two numbers"]),
    ("betas", 0.9, TypeError, ["0.9", "two numbers"]),
    ("betas", (0.9, "x"), TypeError, ["x", "number"]),
    ("eps", -1e-8, ValueError, ["-1e-08", ">= 0"]),
    ("eps", nan, ValueError, ["nan", "finite"]),
    ("ns_eps", -1.0, ValueError, ["-1", ">= 0"]),
    ("alpha", nan, ValueError, ["nan", "finite"]),
    ("alpha", inf, ValueError, ["inf", "finite"]),
    ("center", 1, TypeError, ["1", "True or False"]),
    ("center", "yes", TypeError, ["yes", "True or False"]),
    ("nesterov", 1, TypeError, ["1", "True or False"]),
    ("maximize", "no", TypeError, ["no", "True or False"]),
    ("stochastic_rounding", 0.5, TypeError, ["0.5", "True or False"]),
    ("seed", 1.5, TypeError, ["1.5", "int"]),
    ("seed", 2**70, (TypeError, ValueError), [str(2**70)]),
    ("ns_steps", 0, ValueError, ["0", "1 to 99"]),
    ("ns_steps", -1, ValueError, ["-1", "1 to 99"]),
    ("ns_steps", 100, ValueError, ["100", "1 to 99"]),
    ("ns_steps", 2.5, TypeError, ["2.5", "int"]),
    ("ns_coefficients", "quintic", ValueError, ["quintic", "polar_express", "jordan"]),
    ("ns_coefficients", [], TypeError, ["[]", "three numbers"]),
    ("ns_coefficients", (1.0, 2.0), TypeError, ["1", "2", "three numbers"]),
    ("ns_coefficients", [(1.0, 2.0, 3.0), (1.0,)], TypeError, ["[1.", "three numbers"]),
    ("ns_coefficients", (1.0, nan, 3.0), ValueError, ["nan", "finite"]),
    ("layout", "transpose", TypeError, ["transpose", "list of steps"]),
    ("layout", ["transpose"], TypeError, ["transpose", "dict"]),
    ("layout", [{"rows": 2, "dim": -2}], ValueError, ["rows", "transpose", "sections", "heads"]),
    ("layout", [{}], ValueError, ["{}", "transpose", "flatten"]),
    ("layout", [{1: 2}], TypeError, ["1", "str"]),
    ("layout", [{"transpose": False}], ValueError, ["transpose", "True"]),
    ("layout", [{"transpose": True, "dim": -1}], ValueError, ["dim", "transpose"]),
    ("layout", [{"transpose": True, "flatten": True}], ValueError, ["one verb", "flatten"]),
    ("layout", [{"heads": 2}], ValueError, ["heads", "dim"]),
    ("layout", [{"heads": 2, "dim": 0}], ValueError, ["0", "-2", "-1"]),
    ("layout", [{"heads": 0, "dim": -2}], ValueError, ["0", "positive"]),
    ("layout", [{"heads": 3, "dim": -2}], ValueError, ["3", "8"]),
    ("layout", [{"heads": 4, "dim": -1}], ValueError, ["4", "6"]),
    ("layout", [{"heads": "two", "dim": -2}], TypeError, ["two", "int"]),
    ("layout", [{"sections": [3, 4], "dim": -2}], ValueError, ["[3, 4]", "7", "8"]),
    ("layout", [{"sections": [9, -1], "dim": -2}], ValueError, ["[9, -1]", "positive"]),
    ("layout", [{"sections": [2**63 - 1] * 2 + [10], "dim": -2}], ValueError, ["more than", "8"]),
    ("layout", [{"sections": [], "dim": -2}], ValueError, ["[]", "8"]),
    ("layout", [{"sections": 8, "dim": -2}], TypeError, ["8", "list of int"]),
    ("layout", [{"pairs": "mixed", "dim": -2}], ValueError, ["mixed", "concatenated"]),
    ("layout", [{"pairs": 2, "dim": -2}], TypeError, ["2", "str"]),
    (
        "layout",
        [{"transpose": True}, {"flatten": True}],
        ValueError,
        ["layout[1]", "flatten", "first"],
    ),
    (
        "layout",
        [{"sections": [5, 3], "dim": -2}, {"pairs": "interleaved", "dim": -2}],
        ValueError,
        ["layout[1]", "even", "5"],
    ),
]

# Values that are good alone and exclude each other.
COMBINATIONS = [
    ({"center": True, "layout": HEADS}, ["center", "heads", "False"]),
    ({"center": True, "layout": [{"sections": [4, 4], "dim": -2}]}, ["center", "sections"]),
    ({"center": True, "layout": [{"pairs": "concatenated", "dim": -2}]}, ["center", "pairs"]),
    ({"center": True, "rule": "column_norm"}, ["center", "column_norm"]),
    ({"center": True, "rule": "adamw"}, ["center", "adamw"]),
    ({"center": True, "decay": "cautious"}, ["cautious", "decoupled"]),
    ({"alpha": 0.5, "rule": "row_norm"}, ["alpha", "0.5", "row_norm"]),
    ({"alpha": 1.0, "rule": "column_norm"}, ["alpha", "1", "column_norm"]),
    ({"alpha": 1.0, "rule": "adamw"}, ["alpha", "1", "adamw"]),
    ({"alpha": 1.0, "rule": "hybrid", "order": "polar_then_row"}, ["alpha", "polar_then_row"]),
    ({"ns_coefficients": "deepseek_v4", "ns_steps": 5}, ["ns_steps", "5", "10"]),
]

CASES = [({o: v}, error, [o, *words]) for o, v, error, words in VALUES] + [
    (options, ValueError, words) for options, words in COMBINATIONS
]


def case_id(case) -> str:
    options, _, words = case
    return ",".join(f"{k}={str(v)[:40]}" for k, v in options.items())


def parameter():
    return torch.nn.Parameter(torch.randn(8, 6))


@pytest.fixture
def live():
    """An optimizer in the middle of a run, with gradients for the next step."""
    optimizer = erlangen.Equivariant(
        [{"params": [parameter()], "rule": "spectral"}, {"params": [parameter()], "rule": "adamw"}]
    )
    run(optimizer, 2, gradients())
    set_grads([p for group in optimizer.param_groups for p in group["params"]], gradients(7))
    return optimizer


@pytest.mark.parametrize("case", CASES, ids=case_id)
class TestOption:
    def check(self, case, group, action):
        options, error, words = case
        with pytest.raises(error) as caught:
            action(options)
        message = str(caught.value)
        for word in words if group is None else [*words, f"param_groups[{group}]"]:
            assert word in message

    def test_of_constructor(self, case):
        p = parameter()
        before = p.detach().clone()
        options = {"rule": "spectral", **case[0]}
        with pytest.raises(case[1]) as caught:
            erlangen.Equivariant([p], **options)
        # Without a rule these are bare parameters.
        for word in case[2] if options["rule"] else ["rule", "bare parameters"]:
            assert word in str(caught.value)
        assert torch.equal(p, before)

    def test_of_group(self, case):
        self.check(
            case,
            1,
            lambda options: erlangen.Equivariant(
                [
                    {"params": [parameter()], "rule": "row_norm"},
                    {"params": [parameter()], "rule": "spectral", **options},
                ]
            ),
        )

    def test_of_added_group(self, case, live):
        before = Picture(live)
        self.check(
            case,
            2,
            lambda options: live.add_param_group(
                {"params": [parameter()], "rule": "spectral", **options}
            ),
        )
        Picture(live).assert_same(before)

    def test_changed_later(self, case, live):
        before = Picture(live)

        def step(options):
            live.param_groups[0].update(options)
            live.step()

        self.check(case, 0, step)
        # The group says what the user wrote into it; a step has changed nothing.
        Picture(live).assert_same_tensors(before)

    def test_changed_later_before_the_first_step(self, case):
        optimizer = erlangen.Equivariant([{"params": [parameter()], "rule": "spectral"}])
        set_grads(optimizer.param_groups[0]["params"], gradients())
        before = Picture(optimizer)

        def step(options):
            optimizer.param_groups[0].update(options)
            optimizer.step()

        self.check(case, 0, step)
        Picture(optimizer).assert_same_tensors(before)
        assert not optimizer.state

    def test_loaded(self, case, live):
        before = Picture(live)

        def load(options):
            state_dict = copy.deepcopy(live.state_dict())
            state_dict["param_groups"][0].update(options)
            for state in state_dict["state"].values():  # so that a half load shows
                for tensor in state.values():
                    tensor.mul_(2)
            live.load_state_dict(state_dict)

        self.check(case, 0, load)
        Picture(live).assert_same(before)


def test_good_values_after_bad_ones(live):
    """What was refused leaves no trace: the run goes on as if it had not been tried."""
    other = copy.deepcopy(live)
    live.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError):
        live.step()
    live.param_groups[0]["lr"] = 1e-3
    assert all(map(torch.equal, run(live, 3, gradients(3)), run(other, 3, gradients(3))))
