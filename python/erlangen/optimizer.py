"""Equivariant and its presets: torch.optim.Optimizer subclasses over the C++ step."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, overload

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack  # torch's own dependency

from . import _C, _checkpoints
from ._options import OPTIONS, arguments, entries, parameters
from .options import Coefficients, MuonOptions, Options, Scale
from .routing import param_groups
from .routing.messages import callers_level
from .thawing import Origin, check_link, follow, link, without_model

__all__ = ["Equivariant", "Hybrid", "LeftSpectral", "Muon", "PolarGrad", "RightSpectral", "RowNorm"]

_LR, _WEIGHT_DECAY = OPTIONS["lr"], OPTIONS["weight_decay"]


class Equivariant(Optimizer):
    """Gives every parameter group the update rule that its block's symmetry asks for.

    Formulas: arXiv 2605.18106. A group's own value beats the one given here. State: a matrix rule
    keeps ``momentum_buffer`` (and ``step``, where it rounds stochastically), adamw ``exp_avg``,
    ``exp_avg_sq`` and ``step``; each is on the parameter's device, has its shape (``step``: none)
    and comes into being at its first step.

    Args:
        params: a model (its groups are made by :func:`erlangen.param_groups`), or dicts with
            ``params``, ``rule`` and further options. Bare parameters need a ``rule`` here, or a
            preset such as :class:`erlangen.Muon`.
        lr: learning rate, a number or a tensor with one element. A step leaves one that is on a GPU
            to be read there; so with weight_decay.
        weight_decay: decoupled; p ← (1 − lr·weight_decay)·p from the parameter before the step.
        overrides, strict: with a model, as for :func:`erlangen.param_groups`.
        options: any other of :class:`erlangen.Options`, as the default of all groups.
            torch's ``foreach`` and ``fused`` are taken and change nothing, as do
            ``differentiable`` and ``amsgrad`` where they are False.

    Keys of other people in groups (``name``, ``lr_mult``, what schedulers and wrappers add) are
    kept and saved, and no step looks at them; one that is nearly an option's name is refused where
    a group is given. So are entries of wrappers in a parameter's state. Parameters without elements
    have a state and are left alone.

    With ``capturable=True`` step() can be captured in a CUDA graph. Take the first step, which
    creates the state, before the capture. Replays see new values of ``lr`` and ``weight_decay``
    where these are tensors on the GPU; schedulers change them in place. GradScaler then leaves
    overflows to step(), which changes nothing on the device where ``found_inf`` says so, its count
    included; gradients of matrix rules stay scaled, adamw's may be left unscaled, as by torch's.

    LR schedulers that cycle momentum (OneCycleLR, CyclicLR) cycle ``betas[0]``; give them
    ``cycle_momentum=False`` where there are no adamw groups.

    Raises:
        ValueError, TypeError: for every option, parameter, gradient or state that no step can
            take, naming it and what is allowed, before anything has changed.
    """

    __signature__: ClassVar[inspect.Signature]  # with every option, below
    _origin: Origin | None = None  # the model it was made from; copies and pickles have none

    def __init__(
        self,
        params: nn.Module | ParamsT,
        lr: float | Tensor = _LR,
        weight_decay: float | Tensor = _WEIGHT_DECAY,
        *,
        overrides: Mapping[str, Mapping] | None = None,
        strict: bool = False,
        **options: Unpack[Options],
    ):
        name = type(self).__name__
        chosen = arguments({**options, "lr": lr, "weight_decay": weight_decay}, name)
        defaults = {**OPTIONS, **chosen}
        given: Any = params
        if isinstance(given, nn.ParameterList) and defaults["rule"]:
            given = list(given)
        if isinstance(given, nn.Module):
            if defaults["rule"]:
                raise TypeError(
                    f"{name} was given a model and one rule for all of it; allowed: "
                    "parameters or groups, or erlangen.Equivariant(model), where each parameter "
                    "has the rule of its role"
                )
            scale = defaults["adjust_lr_fn"]
            choices = {"overrides": overrides, "adjust_lr_fn": scale, "strict": strict}
            groups = param_groups(given, **choices)
            self._origin, given = Origin(given, choices), groups
        elif overrides is not None or strict:
            what = "strict" if overrides is None else "overrides"
            raise TypeError(
                f"{name} was given {what} without a model; allowed: a model, or "
                f"erlangen.param_groups(model, {what}={what})"
            )
        if isinstance(given, torch.Tensor | str | Mapping | set | frozenset) or not isinstance(
            given, Iterable
        ):
            shown = {torch.Tensor: "a tensor", Mapping: "a dict", (set, frozenset): "a set"}
            what = next((text for kind, text in shown.items() if isinstance(given, kind)), None)
            raise TypeError(
                f"{name} was given {what or repr(given)}; allowed: a model, a list of groups, or "
                "for a preset a list of parameters"
            )
        given = list(given)
        if not given:
            raise ValueError(
                f"{name} was given an empty parameter list (as is an iterator that something else "
                "has used up)"
            )
        if any(isinstance(item, nn.Module) for item in given):
            raise TypeError(
                f"{name} was given a list with a model in it; allowed: one model, such as "
                "torch.nn.ModuleList([a, b])"
                + (", whose parameters() a preset takes" if defaults["rule"] else "")
            )
        groups = [group for group in given if isinstance(group, dict)]
        if not defaults["rule"] and not any(group.get("rule") for group in groups):
            what = "groups" if groups else "bare parameters"
            raise ValueError(
                f"{name} was given {what}, which have no rule; allowed: a model, "
                "erlangen.param_groups(model), groups with a rule (spectral, row_norm, adamw, ...),"
                " or a preset such as erlangen.Muon; for transformers' Trainer, which makes groups "
                "of its own, erlangen.integrations.TrainerFactory"
            )
        self._plan = _C.Plan()
        super().__init__(given, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    # torch.compile runs it as it is, between two graphs: it is compiled already. Decorated as torch
    # decorates Optimizer's methods, since torch.compiler.disable loads the compiler on import.
    @_disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None):
        """Updates every parameter that has a gradient; returns the closure's loss, if any."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        follow(self.param_groups)
        _C.step(
            self._plan,
            self.param_groups,
            self.state,
            grad_scale=getattr(self, "grad_scale", None),  # both set by GradScaler
            found_inf=getattr(self, "found_inf", None),
            capturing=torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing(),
        )
        return loss

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether GradScaler leaves unscaling and overflows to step().

        It must where the step is captured: its own way reads on the host whether to step. Elsewhere
        its own way is what others build on: Lightning clips gradients only where it unscales them
        itself, and Accelerate learns from a step left out that the scheduler must wait too.
        """
        return any(group.get("capturable") for group in self.param_groups)

    def add_param_group(self, param_group: dict) -> None:
        """Adds a group: a dict with ``params``, and options that beat the optimizer's.

        A group without a rule, where the optimizer was made from a model, becomes the groups that
        :func:`erlangen.param_groups` makes of its parameters. They have one lr, that of the last
        of them: to steer one alone, take its ``lr_with`` out first.
        """
        where = f"param_groups[{len(self.param_groups)}]"
        if not isinstance(param_group, dict):
            raise TypeError(f"{where} must be a dict, got {type(param_group).__name__}")
        if "params" not in param_group:
            raise ValueError(f'{where} has no "params"')
        group = entries(param_group, where)
        if _checkpoints.names_of_0_1(group) and not any("lr_scale" in g for g in self.param_groups):
            warnings.warn(
                f"{where} has lr_scale, which is left to schedulers such as timm's, that multiply "
                "lr by it; the factor on this group's update is called update_scale",
                stacklevel=callers_level(),
            )
        check_link(group, where)
        group = self._translated(group)
        group["params"] = parameters(group["params"], where)
        before = len(self.param_groups)
        try:
            for part in self._with_rules(group, where):
                self._add(part)
        except BaseException:
            del self.param_groups[before:]
            raise

    def _with_rules(self, group: dict, where: str) -> list[dict]:
        """The group, or where it has no rule those that the model gives its parameters."""
        if self.defaults["rule"] or group.get("rule") or group.get("role") or not group["params"]:
            return [group]
        if self._origin is None:
            raise without_model(
                where,
                "this optimizer was made from groups, or is a copy, and knows no model to ask",
            )
        known = [p for g in self.param_groups for p in g["params"]]
        parts = self._origin.split(group, known, where)
        link(parts, self.param_groups)
        return parts

    def _add(self, group: dict) -> None:
        index = len(self.param_groups)
        tensors = [p[1] if isinstance(p, tuple) else p for p in group["params"]]
        if all(isinstance(p, torch.Tensor) for p in tensors):  # else torch says so below
            _C.check_params_apart([g["params"] for g in self.param_groups] + [tensors])
        super().add_param_group(self._with_names(group))
        # here, because the group now has all its options
        _C.check_group(self.param_groups[-1], index)

    def _with_names(self, group: dict) -> dict:
        """The group with names, if the others have some: torch wants all groups with or without."""
        named = "param_names" in group or isinstance(next(iter(group["params"]), None), tuple)
        if not named and self.param_groups and "param_names" in self.param_groups[0]:
            index = len(self.param_groups)
            group["param_names"] = [f"group {index} [{i}]" for i in range(len(group["params"]))]
        return group

    def _translated(self, group: dict) -> dict:
        """A copy of a group in the names of :class:`Equivariant`."""
        return dict(group)

    def explain(self, full: bool = False) -> str:
        """A table: parameter, shape, role, rule, logical matrices, factor on the learning rate, and
        how far the role can be relied on and why (where the groups say so).

        Args:
            full: a line for each parameter, in the order of the model that the optimizer was made
                from (else group by group), and not one for all layers.
        """
        groups = self.param_groups
        if full and self._origin is not None:
            groups = self._origin.in_order(groups)
        return _C.explain(groups, full)

    def load_state_dict(self, state_dict: dict) -> None:
        """Loads groups and state; our state keeps the dtype it was saved in, entries of other
        people are loaded as torch loads them.

        Where both sides name all their parameters, by the same names, each gets the state of its
        name, in whatever groups and order; a group gets the options on which the saved groups of
        its parameters agree. Else groups and parameters are taken in order, as by torch. Options
        are the dict's then, the rule too; those that it does not have (another optimizer's, an
        older version's) keep their value.

        Raises:
            ValueError: groups, options or shapes that do not fit; nothing has changed then.
        """
        before = (self.param_groups, self.state)
        incoming = {}

        def complete(_, loaded: dict) -> dict:
            _checkpoints.check_form(loaded)
            saved = [self._translated(_checkpoints.renamed(g)) for g in loaded["param_groups"]]
            groups = _checkpoints.fitted(saved, self.param_groups, loaded["state"])
            incoming.update(loaded, param_groups=groups)
            return incoming

        # After the caller's own hooks on the dict, and before those on what was loaded.
        hooks = [
            self.register_load_state_dict_pre_hook(complete),
            self.register_load_state_dict_post_hook(
                lambda _: _checkpoints.restore_dtypes(incoming, self.param_groups, self.state),
                prepend=True,
            ),
        ]
        try:
            super().load_state_dict(state_dict)
            for key in self.state:
                if not isinstance(key, torch.Tensor):
                    raise ValueError(f"the state dict has a state {key!r} of no parameter")
            stepped = _checkpoints.stepped(self.state)
            for index, group in enumerate(self.param_groups):
                check_link(group, f"param_groups[{index}]")
                _C.check_group(group, index)
                _C.check_states(group, index, stepped)
        except BaseException as error:
            self.param_groups, self.state = before
            if isinstance(error, (KeyError, AttributeError)):
                raise ValueError(f"the state dict does not fit: {error!r}") from error
            raise
        finally:
            for hook in hooks:
                hook.remove()

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.param_groups = [_checkpoints.renamed(group) for group in self.param_groups]
        self.defaults = _checkpoints.renamed(self.defaults)
        self._plan = _C.Plan()
        for options in (self.defaults, *self.param_groups):  # pickled before an option existed
            for key, value in OPTIONS.items():
                options.setdefault(key, value)


class _Preset(Equivariant):
    """Equivariant with its rule preset, so that bare parameters are enough."""

    _preset: str  # the name that C++ knows; a subclass of a preset keeps it

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = _LR,
        weight_decay: float | Tensor = _WEIGHT_DECAY,
        **options: Unpack[Options],
    ):
        preset = _C.preset_options(self._preset)
        chosen: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, **options}
        super().__init__(params, **{**preset, **chosen})


class Muon(Equivariant):
    """torch.optim.Muon: its signature, defaults and trajectory, within the precision of ns_dtype.

    Beyond it: parameters of three dimensions (batches of matrices) and of four and five
    (convolution kernels, each flattened to one matrix [out, rest]; ``layout`` says so, and
    ``layout=None`` makes them batches too), layouts, and every other option of
    :class:`Equivariant`.

    Args:
        params: matrices, or groups of them; in a group given here or loaded ``eps`` and
            ``adjust_lr_fn`` mean what they mean here. Afterwards they stand in the group under
            Equivariant's names: ``ns_eps``, and "original" for None.
        lr, weight_decay, momentum, nesterov, ns_coefficients, ns_steps: as in torch.optim.Muon.
        eps: least norm that a gradient is divided by; small gradients count less because of it.
        adjust_lr_fn: None ("original", √max(1, m/n)), "match_rms_adamw" (0.2·√max(m, n)),
            "spectral_unclamped" (√(m/n)), or another name that :class:`Equivariant` knows.
        options: further ones of :class:`erlangen.Options`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        weight_decay: float | Tensor = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: Coefficients = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: Scale | None = None,
        **options: Unpack[MuonOptions],
    ):
        preset = _C.preset_options("Muon")
        chosen: dict[str, Any] = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "ns_eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn or preset["adjust_lr_fn"],
            **options,
        }
        super().__init__(params, **{**preset, **chosen})

    def _translated(self, group: dict) -> dict:
        # In torch.optim.Muon's groups eps is that of the norm, and None stands for "original". A
        # group with an ns_eps, as our own checkpoints have, means adamw's by eps; so do adamw's
        # own, which torch.optim.AdamW saves with no rule.
        group = dict(group)
        adamw = group.get("rule") == "adamw" or "amsgrad" in group
        if not adamw and "eps" in group and "ns_eps" not in group:
            group["ns_eps"] = group.pop("eps")
        if group.get("adjust_lr_fn", "") is None:
            group["adjust_lr_fn"] = "original"
        return group


class PolarGrad(_Preset):
    """Spectral with alpha 1: the polar direction times the nuclear norm (timlautk/polargrad).

    Arguments as :class:`Equivariant`; ``params`` may be bare matrices.
    """

    _preset = "PolarGrad"


class RowNorm(_Preset):
    """Every row moves by the same length. Arguments as :class:`Equivariant`."""

    _preset = "RowNorm"


class RightSpectral(_Preset):
    """X (XᵀX)^(-1/2), from the Gram matrix of the columns. Arguments as :class:`Equivariant`."""

    _preset = "RightSpectral"


class LeftSpectral(_Preset):
    """(XXᵀ)^(-1/2) X, from the Gram matrix of the rows. Arguments as :class:`Equivariant`."""

    _preset = "LeftSpectral"


class Hybrid(_Preset):
    """Unit rows, then polar, or the other way round. Arguments as :class:`Equivariant`."""

    _preset = "Hybrid"


def _signature_of(cls: type) -> inspect.Signature:
    """The options as keyword-only arguments with their defaults, which stand in C++ alone."""
    parameter = inspect.Parameter
    own = inspect.signature(cls.__init__).parameters
    preset = _C.preset_options(cls._preset) if issubclass(cls, _Preset) else {}
    named = [p for n, p in own.items() if n != "self" and p.kind != parameter.VAR_KEYWORD]
    rest = [
        parameter(name, parameter.KEYWORD_ONLY, default=preset.get(name, default))
        for name, default in OPTIONS.items()
        if name not in own
    ]
    return inspect.Signature(named + rest)


for _cls in (Equivariant, Muon, PolarGrad, RowNorm, RightSpectral, LeftSpectral, Hybrid):
    _cls.__signature__ = _signature_of(_cls)
