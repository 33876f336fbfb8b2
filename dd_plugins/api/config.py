"""Typed, frozen configuration with errors that name the path, the value and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from dd_plugins.errors import ConfigError


class PluginConfig(BaseModel):
    """Base of every plugin's ``Config``: frozen, and unknown keys are errors.

    Give every field a default and a description; both show in ``dd-bench run --dry-run`` and in error messages.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _booleans_are_no_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields.get(info.field_name or "")
        if isinstance(value, bool) and field is not None and not _takes_booleans(field.annotation):
            raise ValueError("a boolean is not allowed here")
        return value


def _takes_booleans(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(_takes_booleans(part) for part in get_args(annotation))


Model = TypeVar("Model", bound=BaseModel)


def parse_config(model: type[Model], values: Model | Mapping[str, Any] | None, path: str) -> Model:
    """Validates ``values`` against ``model``.

    Args:
        model: The pydantic model to build.
        values: A ready instance (returned as it is), a mapping, or None for the defaults.
        path: Where these values stand in the whole configuration, for messages (``parameterization.config``).

    Raises:
        ConfigError: Names each offending key by its dotted path, its value, and what is allowed.
    """
    if isinstance(values, model):
        return values
    try:
        return model.model_validate(dict(values or {}))
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(model, item, path) for item in error.errors())) from None


def _explain(model: type[BaseModel], item: Any, path: str) -> str:
    keys = [str(key) for key in item["loc"]]
    dotted = ".".join([path, *keys] if path else keys)
    if item["type"] == "extra_forbidden":
        known = sorted(_fields_at(model, keys[:-1]))
        near = difflib.get_close_matches(keys[-1], known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known keys: {', '.join(known) or 'none'}"
        return f"unknown configuration key {dotted}; {hint}"
    return f"{dotted} = {item['input']!r}: {item['msg']}"


def _fields_at(model: type[BaseModel], keys: list[str]) -> list[str]:
    for key in keys:
        field = model.model_fields.get(key)
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)
