"""Values of a config checked against the types of what takes them: a dataclass, or the signature of a class.

A parameter's annotation is its schema. It may also be a `Literal`, which lists the choices, or `Annotated` with a
`Range`. So a class of your own that a config names by `_target_` is checked by the types that you gave it.
"""

from __future__ import annotations

import collections.abc
import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from pkgutil import resolve_name
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import Container, OmegaConf

from debias.records import Range, UserError

Section = TypeVar("Section")

MISSING = "???"


class Part:
    """The type of a setting that is checked where it is made: a config with `_target_`, or several by name."""


SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def checked(schema: type[Section], values: Mapping[str, Any] | Container, place: str = "") -> Section:
    """A config or a section of it as the dataclass `schema`.

    Raises UserError for an unknown key, a missing one, and a value of another type or out of its range.

    Args:
        place: the section's key, for messages; empty for the whole config.
    """
    return schema(**_arguments(_plain(values), schema, place, {}))


def check_call(
    node: Mapping[str, Any] | Container, place: str, stricter: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """A config with `_target_` as plain values, with every argument checked against the signature of what it names.

    Raises UserError for what does not fit, also in the configs inside it.

    Args:
        stricter: types that replace those of the signature, by parameter.
    """
    plain = _plain(node)
    target = _located(plain["_target_"], place)
    return {"_target_": plain["_target_"], **_arguments(plain, target, place, stricter)}


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint with the known name that was probably meant; empty if none is close.

    A key is looked for beside its siblings (`training.` has those of `training`), then under its own name elsewhere.
    """
    section, _, last = name.rpartition(".")
    siblings = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == section}
    found = _closest(last, list(siblings))
    if found is None:
        namesakes = [key for key in known if key.rpartition(".")[2] == last]
        meant = namesakes[0] if namesakes else None if siblings else _closest(name, known)
    else:
        meant = siblings[found]
    return f" (did you mean {meant!r}?)" if meant else ""


def _closest(name: str, known: Sequence[str]) -> str | None:
    """The name with the fewest edits, if they are one in four letters at most, or one that begins like this."""
    allowed = max(1, len(name) // 4)
    edits = {other: _edits(name, other) for other in known if abs(len(other) - len(name)) <= allowed}
    best = min(edits, key=lambda other: edits[other], default=None)
    if best is not None and edits[best] <= allowed and edits[best] < max(len(name), len(best)):
        return best
    longer = [other for other in known if len(name) > 2 and other.startswith(name)]
    return longer[0] if len(longer) == 1 else None


def _edits(a: str, b: str) -> int:
    """Letters to insert, delete, replace or swap with their neighbour (optimal string alignment)."""
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        rows.append([i])
        for j, y in enumerate(b, 1):
            cost = min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + (x != y))
            if i > 1 and j > 1 and (x, y) == (b[j - 2], a[i - 2]):
                cost = min(cost, rows[i - 2][j - 2] + 1)
            rows[i].append(cost)
    return rows[-1][-1]


def _plain(values: Any) -> Any:
    return OmegaConf.to_container(values, resolve=True) if OmegaConf.is_config(values) else values


# ---------------------------------------------------------------- a mapping -> arguments


def _arguments(
    values: Mapping[str, Any], target: Callable[..., Any], place: str, stricter: Mapping[str, Any]
) -> dict[str, Any]:
    """The values as arguments of a class or function."""
    kinds, required, takes_more = _parameters(target)
    kinds = {name: stricter.get(name, kind) for name, kind in kinds.items()}
    more = [key for key in values if key not in kinds and not _special(key)]
    if more and not takes_more:
        key = _join(place, more[0])
        hint = nearest(key, [_join(place, known) for known in kinds])
        known = f"; choose one of: {', '.join(kinds)}" if kinds else f"; {place} takes no settings"
        raise UserError(f"unknown key {key!r}{hint or known}")
    absent = [name for name in required if values.get(name, MISSING) == MISSING]
    if absent and not values.get("_partial_") and "_args_" not in values:
        raise UserError(f"{_join(place, absent[0])} must be set: add {_join(place, absent[0])}=VALUE")
    return {
        key: value if _special(key) else _fitted(value, kinds.get(key, Any), _join(place, key))
        for key, value in values.items()
        if key != "_target_"
    }


def _join(place: str, key: object) -> str:
    return f"{place}.{key}" if place else str(key)


def _special(key: object) -> bool:
    return str(key) in ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")


def _located(name: str, place: str) -> Callable[..., Any]:
    """What `_target_` names."""
    try:
        found = resolve_name(name)
    except ValueError as error:
        raise UserError(f"{place}._target_={name!r} is not a dotted name; write package.module.Class") from error
    except Exception as error:  # importing a module of the user runs it
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(
            f"{place}._target_: {name} cannot be imported ({reason}); check its name and PYTHONPATH"
        ) from error
    if not callable(found):
        raise UserError(f"{place}._target_: {name} is not a class or a function")
    return found


def _parameters(target: Callable[..., Any]) -> tuple[dict[str, Any], list[str], bool]:
    """Types by parameter, the names of those without a default, and whether the target takes others as well."""
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # some built-in functions do not tell
        return {}, [], True
    annotated = _annotations(target)
    kinds: dict[str, Any] = {}
    required = []
    takes_more = False
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            takes_more = True
        elif parameter.kind not in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            kind = annotated.get(name, Any)
            kinds[name] = kind | None if parameter.default is None else kind
            if parameter.default is parameter.empty:
                required.append(name)
    parents = target.__mro__[1:-1] if isinstance(target, type) else ()
    if takes_more and target.__module__.startswith("debias.") and parents:  # our classes hand the rest to their parent
        of_parent, also_required, takes_more = _parameters(parents[0])
        kinds, required = {**of_parent, **kinds}, [*required, *also_required]
    return kinds, required, takes_more


def _annotations(target: Callable[..., Any]) -> dict[str, Any]:
    """Annotations by parameter. One that cannot be evaluated, such as an import for the type checker, is left out."""
    holders: list[Any] = [target]
    if isinstance(target, type):
        holders = list(reversed(target.__mro__[:-1])) if _is_section(target) else [target.__init__]  # type: ignore[misc]
    found: dict[str, Any] = {}
    for holder in holders:
        names = vars(inspect.getmodule(holder) or types)
        for name, annotation in getattr(holder, "__annotations__", {}).items():
            alone = types.SimpleNamespace(__annotations__={name: annotation})
            try:
                found |= get_type_hints(alone, names, include_extras=True)
            except (NameError, TypeError, SyntaxError, AttributeError):
                found.pop(name, None)
    return found


# ---------------------------------------------------------------- a value and its type


def _fitted(value: Any, kind: Any, place: str) -> Any:
    """The value as this type. Raises UserError if it does not fit."""
    if isinstance(value, str) and value == MISSING:
        raise UserError(f"{place} must be set: add {place}=VALUE")
    if Part in _members(kind) and isinstance(value, Mapping):
        return value
    if isinstance(value, Mapping) and "_target_" in value:
        return check_call(value, place)
    kinds = _members(kind)
    fitting = [_bare(one) for one in kinds if _fits(value, one)]
    if fitting:
        return float(value) if set(fitting) == {float} else value
    for one in kinds:
        if isinstance(value, Mapping) and _is_section(one):
            return checked(one, value, place)
        if isinstance(value, Mapping) and _shape(one) is Mapping:
            return {key: _fitted(inner, _of(one), _join(place, key)) for key, inner in value.items()}
        # YAML and Hydra read digits as a number: a model named 123, or one of the choices.
        spelled = _bare(one) is str or (_shape(one) is Literal and str(value) in get_args(_bare(one)))
        if spelled and isinstance(value, int) and not isinstance(value, bool):
            return str(value)
    if isinstance(value, list) and any(_shape(one) is Sequence for one in kinds):
        of = next(_of(one) for one in kinds if _shape(one) is Sequence)
        if any(isinstance(inner, Mapping) and "_target_" in inner for inner in value):
            return [_fitted(inner, of, f"{place}[{i}]") for i, inner in enumerate(value)]
    raise UserError(_complaint(value, kinds, place))


def _members(kind: Any) -> list[Any]:
    """The members of a union, or the type alone."""
    if get_origin(kind) in (Union, types.UnionType):
        return [one for member in get_args(kind) for one in _members(member)]
    return [kind]


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _ranges(kind: Any) -> list[Range]:
    return [one for one in getattr(kind, "__metadata__", ()) if isinstance(one, Range)]


def _shape(kind: Any) -> Any:
    """`Sequence`, `Mapping`, `Literal` or a type without its parameters."""
    origin = get_origin(_bare(kind)) or _bare(kind)
    if origin in (list, tuple, set, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection):
        return Sequence
    return Mapping if origin in (dict, collections.abc.Mapping, collections.abc.MutableMapping) else origin


def _of(kind: Any) -> Any:
    """The type of what a list or a mapping holds."""
    inner = [one for one in get_args(_bare(kind)) if one is not ...]
    return inner[-1] if inner else Any


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and is_dataclass(kind)


def _is_ours(kind: Any) -> bool:
    return isinstance(kind, type) and kind.__module__.startswith("debias.")


def _fits(value: Any, kind: Any) -> bool:
    bare, shape = _bare(kind), _shape(kind)
    if shape is Literal:
        return value in get_args(bare)
    if bare in (None, type(None)):
        return value is None
    if bare in (int, float):
        number = isinstance(value, int | float) if bare is float else isinstance(value, int)
        in_range = number and not isinstance(value, bool) and math.isfinite(value)
        return in_range and all(one.holds(value) for one in _ranges(kind))
    if bare in (bool, str):
        return isinstance(value, bare)
    if shape is Sequence:
        return isinstance(value, list | tuple) and all(any(_fits(v, k) for k in _members(_of(kind))) for v in value)
    if shape is Mapping or _is_section(bare):
        return not isinstance(value, Mapping | str | int | float | list | None)  # `_fitted` looks inside a mapping
    if _is_ours(bare):  # an object, which a config can only describe by a mapping with _target_
        return not isinstance(value, Mapping | str | int | float | list | None)
    return True  # Any, or a type of somebody else, which may take what it likes


# ---------------------------------------------------------------- what is wrong, in words


def _complaint(value: Any, kinds: Sequence[Any], place: str) -> str:
    choices = [str(choice) for kind in kinds if _shape(kind) is Literal for choice in get_args(_bare(kind))]
    words = [said for kind in kinds if (said := _words(kind))]
    words += ["null"] if any(_bare(kind) in (None, type(None)) for kind in kinds) else []
    shown = f"{place}={_shown(value)}"
    if choices:
        return f"{shown} is unknown{nearest(str(value), choices)}; choose {_either([*choices, *words])}"
    text = str in map(_bare, kinds) and isinstance(value, bool | float)
    remedy = f"; quote what is meant as text: \"{place}='...'\"" if text else ""
    return f"{shown} must be {_either(words)}{remedy}"


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return repr(value)


def _words(kind: Any) -> str:
    """What a type takes; empty for choices and null, which are listed apart."""
    bare, shape = _bare(kind), _shape(kind)
    if shape is Literal or bare in (None, type(None)):
        return ""
    if bare in SCALARS:
        return " ".join([SCALARS[bare], *map(str, _ranges(kind))])
    if shape is Sequence:
        inner = _members(_of(kind))
        choices = [str(choice) for one in inner if _shape(one) is Literal for choice in get_args(_bare(one))]
        of = [*choices, *filter(None, map(_words, inner))]
        return f"a list such as [A,B], each {_either(of)}" if of else "a list such as [A,B]"
    if shape is Mapping:
        return "a mapping such as {NAME: VALUE}"
    if _is_section(bare):
        return f"a section with {', '.join(_annotations(bare))}"
    return "a config with _target_" if _is_ours(bare) else ""


def _either(words: Sequence[str]) -> str:
    *first, last = list(dict.fromkeys(words)) or ["something else"]
    comma = "," if any(" or " in word for word in first) else ""
    return f"{', '.join(first)}{comma} or {last}" if first else last
