"""YAML files of a fixed form: read whole, and refused by the name of the file and the field."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from shardserve.batching.errors import InvalidArgument, NotFound

MAX_FILE_BYTES = 64 << 20


class Strict(BaseModel):
    """A form that takes the keys that it names and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Form = TypeVar("Form", bound=BaseModel)


def read_form(form: type[Form], path: Path) -> Form:
    """Parse and validate a file. Raises NotFound or InvalidArgument naming the file and field."""
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise NotFound(f"{path}: cannot be read: {error.strerror}") from None
    if len(text) > MAX_FILE_BYTES:
        raise InvalidArgument(f"{path}: such a file has at most {MAX_FILE_BYTES} bytes")
    return parse_form(form, text, str(path))


def parse_form(form: type[Form], text: str | bytes, where: str) -> Form:
    """As `read_form`, for text; `where` names its origin in errors."""
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{where}: not YAML: {error}") from None
    try:
        return form.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(map(_problem, error.errors()))
        raise InvalidArgument(f"{where}: {problems}") from None


def _problem(problem: Mapping[str, Any]) -> str:
    place = ".".join(map(str, problem["loc"])) or "file"
    found = f", not {problem['input']!r}" if problem["type"] == "enum" else ""
    return f"{place}: {problem['msg']}{found}"
