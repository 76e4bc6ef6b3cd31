"""What the caller says about parameters, and how it joins what was found."""

import copy
import difflib
from collections.abc import Mapping
from fnmatch import fnmatchcase

from erlangen import _C
from erlangen._options import OF_EACH, RENAMED

from .findings import Finding

ROLES = tuple(_C.role_names())
_NOT_OPTIONS = ("params", *OF_EACH)  # what a group has besides, and no override sets


class Overrides:
    """The caller's options by exact name, by glob and by role.

    Raises:
        TypeError: not a mapping of strings to mappings.
        ValueError: an option or a role that does not exist.
    """

    def __init__(self, overrides: Mapping[str, Mapping] | None):
        if overrides is None:
            overrides = {}
        if not isinstance(overrides, Mapping):
            raise TypeError(f"overrides must be a dict, got {type(overrides).__name__}")
        for key, options in overrides.items():
            _check(key, options)
        self._options = {key: dict(options) for key, options in overrides.items()}
        self._unused = set(self._options)

    def resolve(
        self, names: list[str], finding: Finding, adjust_lr_fn: str
    ) -> tuple[str, dict, set[str]]:
        """Role and options of the parameter that has these names (several if tied), and which of
        them are the caller's word."""
        named = self._by_name(names)
        of_role = {} if "role" in named else self._by_role(finding.role)
        role = named.get("role", of_role.get("role", finding.role))
        of_role = of_role | self._by_role(role)
        chosen = of_role | named
        adjust_lr_fn = chosen.get("adjust_lr_fn", adjust_lr_fn)
        options = dict(_C.role_options(role, adjust_lr_fn))
        # How the tensor is stored comes before how the role looks at it.
        layout = finding.layout if role == finding.role else finding.storage
        options["layout"] = layout + (options.get("layout") or [])
        if role == finding.role:
            options |= finding.options
        options |= chosen
        return role, _without_idle(options, chosen, adjust_lr_fn), set(chosen)

    def check_used(self, names: list[str], frozen: list[str], roles: set[str]) -> None:
        """Raises ValueError for overrides that have matched nothing."""
        if not self._unused:
            return
        lines = []
        for key in self._options:
            if key in self._unused:
                lines.append(f"  {key!r}{_hint(key, names, frozen)}")
        raise ValueError(
            "these overrides match no trainable parameter's name and no role of this model:\n"
            + "\n".join(lines)
            + f"\nroles of this model: {', '.join(r for r in ROLES if r in roles)}"
        )

    def _by_name(self, names: list[str]) -> dict:
        globs, exact = {}, {}
        for key, options in self._options.items():
            if key in names:
                exact |= options
            elif _is_glob(key) and any(fnmatchcase(name, key) for name in names):
                globs |= options
            else:
                continue
            self._unused.discard(key)
        return globs | exact

    def _by_role(self, role: str) -> dict:
        if role not in self._options:
            return {}
        self._unused.discard(role)
        return self._options[role]


def _check(key: str, options: Mapping) -> None:
    if not isinstance(key, str):
        raise TypeError(f"overrides: a key must be a name, a glob or a role, got {key!r}")
    if not isinstance(options, Mapping):
        raise TypeError(f"overrides[{key!r}] must be a dict of options, got {options!r}")
    known = [name for name in _C.option_names() if name not in _NOT_OPTIONS]
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(str(option), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; options: {', '.join(known)}"
            if option in RENAMED:
                hint = f"; it is called {RENAMED[option]!r}"
            raise ValueError(f"overrides[{key!r}]: unknown option {option!r}{hint}")
    role = options.get("role", ROLES[0])
    if role not in ROLES:
        raise ValueError(f"overrides[{key!r}]: unknown role {role!r}; roles: {', '.join(ROLES)}")


def _is_glob(key: str) -> bool:
    return any(c in key for c in "*?[")


def _without_idle(options: dict, chosen: Mapping, adjust_lr_fn: str) -> dict:
    """The options that say something: those that a chosen rule has no use for are dropped, unless
    the caller asked for them too."""
    options = {k: v for k, v in options.items() if k != "role" and (k != "layout" or v)}
    if "layout" in options:  # a list of dicts: no two groups may share it
        options["layout"] = copy.deepcopy(options["layout"])
    if options["rule"] == "adamw":  # coordinate-wise: no matrices, nothing to center or to scale
        for key in ("layout", "center", "adjust_lr_fn", "update_scale"):
            if key not in chosen:
                options.pop(key, None)
    elif adjust_lr_fn != "match_rms_adamw":
        options["adjust_lr_fn"] = adjust_lr_fn
    return options


def _hint(key: str, names: list[str], frozen: list[str]) -> str:
    if any(name == key or fnmatchcase(name, key) for name in frozen):
        return " (requires_grad is False)"
    inside = [name for name in names if name.startswith(key + ".")]  # the key is a module's name
    near = inside or difflib.get_close_matches(key, [*names, *ROLES], n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
