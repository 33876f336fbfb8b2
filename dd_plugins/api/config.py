"""Typed, frozen configuration with errors that name the path, the value and what is allowed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from typing_extensions import TypeVar

from dd_plugins.api.faults import describe
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
        if any(isinstance(one, int) and not -(2**63) <= one < 2**63 for one in _elements(value)):
            raise ValueError("expected an integer of 64 bits")
        return value


def _elements(value: Any) -> Iterator[Any]:
    """A value, or all that a list of any depth holds."""
    if isinstance(value, list | tuple):
        for one in value:
            yield from _elements(one)
    else:
        yield value


def _takes_booleans(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(_takes_booleans(part) for part in get_args(annotation))


Model = TypeVar("Model", bound=BaseModel)
ConfigT = TypeVar("ConfigT", bound=PluginConfig, default=Any)  # of classes that are generic in their Config


def parse_config(model: type[Model], values: Model | Mapping[str, Any] | None, path: str) -> Model:
    """Validates ``values`` against ``model``.

    Args:
        model: The pydantic model to build.
        values: A ready instance (returned as it is), a mapping, or None for the defaults.
        path: Where these values stand in the whole configuration, for messages (``parameterization.config``).

    Raises:
        ConfigError: Names the first ten offending keys by their dotted path, their value, and what is allowed.
    """
    if isinstance(values, model):
        return values
    given = {} if values is None else dict(values) if isinstance(values, Mapping) else values
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise ConfigError(describe(error, model, path)) from None
