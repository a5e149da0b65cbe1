"""What all requests have in common: JSON in, a frozen record or an error that names the field out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import pydantic_core
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from ...errors import InvalidRequest
from ...settings import Settings

log = logging.getLogger(__name__)

TRUE, FALSE = ("1", "true", "yes"), ("0", "false", "no")


class Body(BaseModel):
    """Null means default, unknown fields are let through, and a type is never guessed."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: object) -> object:
        if isinstance(data, dict):
            return {name: value for name, value in data.items() if value is not None}
        return data


class Request(Body):
    """A whole request."""

    textual: ClassVar[frozenset[str]] = frozenset()
    """Fields whose query parameter is text as it stands, and may be repeated."""

    @classmethod
    def parse(cls, body: bytes, settings: Settings, query: Mapping[str, list[str]] | None = None) -> Self:
        """Read and check a request: a JSON body, and query parameters, which go before it.

        Raises InvalidRequest naming the first parameter at fault.
        """
        values = _json_object(body)
        values |= {name: cls._from_query(name, given) for name, given in (query or {}).items()}
        return cls.check(values, settings)

    @classmethod
    def check(cls, values: Mapping[str, object], settings: Settings) -> Self:
        """Check a request's fields. Raises InvalidRequest naming the first at fault."""
        if unknown := sorted(values.keys() - cls.model_fields.keys()):
            log.debug("a %s has unknown fields: %s", cls.__name__, ", ".join(unknown))
        try:
            request = cls.model_validate(values)
        except ValidationError as error:
            raise _invalid(error) from None
        request.check_limits(settings)
        return request

    def check_limits(self, settings: Settings) -> None:
        """Raise InvalidRequest for what this server does not allow."""

    @classmethod
    def _from_query(cls, name: str, given: list[str]) -> object:
        """A query parameter as the JSON value it stands for. Text stays text."""
        field = cls.model_fields.get(name)
        if field is None or name in cls.textual or field.annotation in (str, str | None):
            return given if len(given) > 1 else given[0]
        value = given[-1]
        if field.annotation is bool and value.lower() in TRUE + FALSE:
            return value.lower() in TRUE
        try:
            return pydantic_core.from_json(value, allow_inf_nan=False)
        except ValueError:
            return value


def at_most(name: str, value: int, limit: int | None, unit: str = "") -> None:
    """Raise InvalidRequest for a value above the operator's limit, where there is one."""
    if limit is not None and value > limit:
        raise InvalidRequest(f"{name} must be at most {limit}{unit}", param=name)


def unsupported(name: str) -> InvalidRequest:
    """The error for a parameter that would change the answer and that we do not have."""
    return InvalidRequest(f"{name} is not supported", param=name, code="unsupported_parameter")


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object", code="invalid_json")
    return value


def _invalid(error: ValidationError) -> InvalidRequest:
    first, *rest = error.errors(include_url=False)
    # Of a union's branches, the one that got furthest is the one that was meant.
    detail = max([first, *(e for e in rest if e["loc"][:1] == first["loc"][:1])], key=lambda e: len(e["loc"]))
    known = _field_names(Body)
    param = ""
    for part in detail["loc"]:
        if isinstance(part, int):
            param += f"[{part}]"
        # A union's branches and a mapping's keys are in the location too; clients know fields only.
        elif part in known or not param:
            param += f".{part}" if param else part
    return InvalidRequest(f"{param}: {detail['msg']}", param=param or None)


def _field_names(model: type[BaseModel]) -> set[str]:
    names = set(model.model_fields)
    return names.union(*(_field_names(subclass) for subclass in model.__subclasses__()))
