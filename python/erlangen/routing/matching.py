"""A model as the conventions see it, and what they recognise in it: they are C++'s too."""

from torch import nn

from erlangen import _C

from . import modules, numbers
from .declarations import router_options
from .findings import RECOGNISED, Finding
from .modules import Place


def recognise(places: list[Place]) -> dict[int, Finding]:
    """What conventions say of linear maps, by the module's id."""
    found = {}
    for index, (role, why, layout) in _C.recognise_maps(_described(places)).items():
        place = places[index]
        options = router_options(place) if role == "router" else {}
        layout = modules.storage(place.module) + (layout or [])
        found[id(place.module)] = Finding(role, RECOGNISED, why, layout, options)
    return found


def _described(places: list[Place]) -> list[_C.ModulePlace]:
    types: dict[type, int] = {}
    configs: dict[int, numbers.Numbers] = {}
    described = []
    for place in places:
        module, config = place.module, place.config
        if id(config) not in configs:
            configs[id(config)] = numbers.of(config)
        known = _C.ModulePlace()
        known.kind = modules.class_name(module)
        known.type = types.setdefault(type(module), len(types))
        known.is_list = type(module) in (nn.ModuleList, nn.ModuleDict)
        known.is_container = modules.is_container(module)
        known.users = [(user.index, name) for user, name in place.users]
        if modules.is_linear(module) and not place.is_adapter:
            known.map = modules.logical_shape(module)
        if module._modules:  # only what holds maps is asked
            known.stated = numbers.of(module)
            known.config = configs[id(config)]
            known.experts = numbers.experts(place)
        known.own_experts = numbers.read(module, *numbers.EXPERTS)
        stacks = (p for p in module._parameters.values() if p is not None and p.ndim == 3)
        known.stacks = {p.shape[0] for p in stacks}
        described.append(known)
    return described
