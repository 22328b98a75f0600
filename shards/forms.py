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
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 (it is a safe one)
    except yaml.MarkedYAMLError as error:
        raise InvalidArgument(f"{where}: not YAML: {_place(error)}{error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{where}: not YAML: {error}") from None
    try:
        return form.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(map(_problem, error.errors()))
        raise InvalidArgument(f"{where}: {problems}") from None


class _Loader(yaml.SafeLoader):
    """As its parent, which of two equal keys takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} is there twice", problem_mark=key.start_mark
                )
            seen.add((key.tag, str(key.value)))
        return super().construct_mapping(node, deep=deep)


def _place(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return "" if mark is None else f"line {mark.line + 1}: "


def _problem(problem: Mapping[str, Any]) -> str:
    place = ".".join(map(str, problem["loc"])) or "file"
    found = f", not {problem['input']!r}" if problem["type"] == "enum" else ""
    return f"{place}: {problem['msg']}{found}"
