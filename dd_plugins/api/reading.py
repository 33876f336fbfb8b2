"""The one place that reads JSON and YAML from files and arguments: limits, no duplicate keys, errors of one line.

Whatever is wrong is raised as the error class that the caller gives, with the name of the file or argument.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from dd_plugins.api.faults import describe, shortened
from dd_plugins.errors import DDPluginsError

try:
    from yaml import CSafeLoader as BaseLoader
except ImportError:  # PyYAML without libyaml
    from yaml import SafeLoader as BaseLoader  # type: ignore[assignment]

MAX_JSON_BYTES = 16 * 2**20
MAX_YAML_BYTES = 2**20  # a configuration is small, and YAML is slow to parse
MAX_DEPTH = 64  # nested lists and mappings
MAX_DIGITS = 100  # of an integer
Model = TypeVar("Model", bound=BaseModel)
Error = type[DDPluginsError]


def validated(model: type[Model], values: Any, where: str | Path, error: Error, hint: str = "") -> Model:
    """Builds a pydantic model from untrusted values.

    Args:
        model: The model.
        values: What a file or an argument holds.
        where: Its name, for the message.
        error: Class of the error.
        hint: What the user can do, appended to the message.

    Raises:
        DDPluginsError: The class given; names the first ten values that are not allowed, and counts the others.
    """
    try:
        return model.model_validate(values)
    except ValidationError as failure:
        raise error(f"{where}: {describe(failure, model)}{hint}") from None


def read_json(path: Path, error: Error, hint: str = "") -> Any:
    """Reads a JSON file.

    Args:
        path: The file; it must be a regular one, or a link to one.
        error: Class of the error.
        hint: What the user can do, appended to the message.

    Raises:
        DDPluginsError: The class given, if the file cannot be read, is too large or is not valid JSON.
    """
    return parse_json(read_text(path, error, MAX_JSON_BYTES, hint), path, error, hint)


def read_yaml(path: Path, error: Error, hint: str = "") -> Any:
    """Reads a YAML file: one document of mappings, lists and plain values, see `parse_yaml`.

    Args:
        path: The file; it must be a regular one, or a link to one.
        error: Class of the error.
        hint: What the user can do, appended to the message.

    Raises:
        DDPluginsError: The class given, if the file cannot be read, is too large or is not valid YAML.
    """
    return parse_yaml(read_text(path, error, MAX_YAML_BYTES, hint), path, error, hint)


def parse_json(text: str | bytes, where: str | Path, error: Error, hint: str = "") -> Any:
    """Parses JSON. Duplicate keys, NaN, infinity, huge integers and deep nesting are refused.

    Args:
        text: The JSON.
        where: Name of the file or argument, for messages.
        error: Class of the error.
        hint: What the user can do, appended to the message.

    Raises:
        DDPluginsError: The class given, if the text is not valid JSON.
    """
    try:
        decoded = _decoded(text, MAX_JSON_BYTES)
        _check_json_depth(decoded)
        values = json.loads(
            decoded,
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_refuse_constant,
        )
        _check_texts(values)
    except (ValueError, RecursionError) as fault:
        raise error(f"{where}: not valid JSON ({shortened(str(fault), 200)}){hint}") from None
    return values


def parse_yaml(text: str | bytes, where: str | Path, error: Error, hint: str = "") -> Any:
    """Parses YAML: one document of mappings with text keys, lists, texts, numbers, booleans and null.

    Plain values are those of YAML 1.2: ``1e-3`` is a number; dates, ``yes`` and ``1:30`` are texts. Duplicate keys,
    anchors, aliases, tags, huge integers and deep nesting are refused.

    Args:
        text: The YAML.
        where: Name of the file or argument, for messages.
        error: Class of the error.
        hint: What the user can do, appended to the message.

    Raises:
        DDPluginsError: The class given, if the text is not such YAML.
    """
    try:
        decoded = _decoded(text, MAX_YAML_BYTES)
        _check_events(decoded)
        values = yaml.load(decoded, Loader=_Loader)  # noqa: S506
        _check_texts(values)
    except yaml.MarkedYAMLError as fault:
        line = f" in line {fault.problem_mark.line + 1}" if fault.problem_mark else ""
        why = f"{shortened(fault.problem or fault.context or 'damaged', 200)}{line}"
        raise error(f"{where}: not valid YAML ({why}){hint}") from None
    except (yaml.YAMLError, ValueError, LookupError, RecursionError) as fault:
        raise error(f"{where}: not valid YAML ({shortened(str(fault), 200)}){hint}") from None
    return values


def dump_yaml(values: Any) -> str:
    """Plain values as YAML that `parse_yaml` reads back as they were."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=False)


# ---- files ------------------------------------------------------------------------------------------------------


def check_regular(path: Path, error: Error, hint: str = "") -> None:
    """Refuses what is no regular file, such as a pipe, whose opening would wait, or a device, which has no end.

    Raises:
        DDPluginsError: The class given, also if there is no such file.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise error(f"{path}: no such file{hint}") from None
    except OSError as fault:
        raise error(f"{path}: {fault.strerror}{hint}") from None
    except ValueError as fault:  # a NUL in the name
        raise error(f"{shortened(repr(str(path)))}: {fault}{hint}") from None
    if not stat.S_ISREG(mode):
        raise error(f"{path}: not a regular file{hint}")


def read_bytes(path: Path, error: Error, limit: int, hint: str = "") -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises:
        DDPluginsError: The class given, if it cannot be read or is larger.
    """
    check_regular(path, error, hint)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            content = file.read(limit + 1)
    except OSError as fault:
        raise error(f"{path}: {fault.strerror}{hint}") from None
    if len(content) > limit:
        raise error(f"{path}: larger than {limit:,} bytes{hint}")
    return content


def read_text(path: Path, error: Error, limit: int, hint: str = "") -> str:
    """The content of a regular file as UTF-8 text; a byte order mark is left out.

    Raises:
        DDPluginsError: The class given, if it cannot be read, is larger than ``limit`` bytes, or is no UTF-8.
    """
    content = read_bytes(path, error, limit, hint)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise error(f"{path}: not UTF-8 text (at byte {fault.start}){hint}") from None


def _decoded(text: str | bytes, limit: int) -> str:
    if len(text) > limit:
        raise ValueError(f"larger than {limit:,} bytes")
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        decoded.encode()  # bytes of an argument that are not UTF-8 are surrogates in it
    except UnicodeError:
        raise ValueError("not UTF-8 text") from None
    return decoded


# ---- values -----------------------------------------------------------------------------------------------------


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(text):,} digits")
    digits = text.replace("_", "")
    base = {"0o": 8, "0x": 16}.get(digits.lstrip("+-")[:2].lower(), 10)
    return int(digits, base)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{shortened(text)} is larger than a float can be")
    return number


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"duplicate key {shortened(repr(twice))}")
    return found


# A string, or a bracket outside of strings.
_JSON_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)


def _check_json_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for token in _JSON_TOKEN.finditer(text):
        first = text[token.start()]
        depth += (first in "[{") - (first in "]}")
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")


def _check_texts(values: Any) -> None:
    """Refuses texts that cannot be printed or name a file: those with NUL or half of a surrogate pair."""
    left = [values]
    while left:
        value = left.pop()
        if isinstance(value, str):
            if "\0" in value:
                raise ValueError(f"a NUL character in {shortened(repr(value))}")
            if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
                raise ValueError("half of a surrogate pair in a text")
        elif isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value


# ---- YAML -------------------------------------------------------------------------------------------------------


class _Loader(BaseLoader):
    """Reads the plain values of YAML 1.2; PyYAML's own are those of YAML 1.1."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key that is no text", key.start_mark)
            if key.value in found:
                problem = f"duplicate key {shortened(repr(key.value))}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            found[key.value] = self.construct_object(value, deep=True)
        return found

    def read_integer(self, node: yaml.ScalarNode) -> int:
        """An integer of limited length."""
        try:
            return _integer(node.value)
        except ValueError as fault:
            raise yaml.constructor.ConstructorError(None, None, str(fault), node.start_mark) from None

    def read_float(self, node: yaml.ScalarNode) -> float:
        """A float, which may be infinite or NaN: whoever takes it says so in better words."""
        text = node.value.replace("_", "").lower()
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would not read as a text, and writes no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_PLAIN: Iterable[tuple[str, str, str]] = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+(_[0-9]+)*|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(_[0-9]+)*(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL|", "~nN"),
)
_Loader.yaml_implicit_resolvers = {}  # PyYAML's own read dates and 1:30 as well
for _name, _pattern, _first in _PLAIN:
    for _class in (_Loader, _Dumper):
        _firsts = [*_first, *([""] if _name == "null" else [])]
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _firsts)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.read_integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.read_float)


def _check_events(text: str) -> None:
    """Refuses what would have to be resolved or recursed into, before anything is built."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        problem = None
        if depth > MAX_DEPTH:
            problem = f"nested more than {MAX_DEPTH} levels deep"
        elif isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            problem = "anchors and aliases are not allowed"
        elif getattr(event, "tag", None) is not None:
            problem = "tags are not allowed"
        if problem:
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise ValueError(f"{problem} in line {line}")
