from __future__ import annotations

from pathlib import Path

import pytest

from shardserve.batching.errors import NotFound
from shardserve.cluster.example import Example, find_example

URL = "http://127.0.0.1:8501/v1/models/m:predict"


def write(directory: Path, *, reply: bool = True) -> Path:
    extra = directory / "assets.extra"
    extra.mkdir(parents=True)
    (extra / "predict_request.json").write_text('{"instances": [1]}')
    if reply:
        (extra / "predict_reply.json").write_text('{"predictions": [2]}\n')
    return extra / "predict_request.json"


def test_a_model_brings_its_example_along(tmp_path: Path) -> None:
    request = write(tmp_path)

    assert find_example(tmp_path, None) == Example(request, '{"predictions": [2]}')


def test_a_model_without_an_example_has_none(tmp_path: Path) -> None:
    assert find_example(tmp_path, None) is None


def test_one_that_is_given_counts_and_needs_no_reply(tmp_path: Path) -> None:
    write(tmp_path / "model")
    given = write(tmp_path / "other", reply=False)

    assert find_example(tmp_path / "model", given) == Example(given, None)


def test_one_that_is_given_must_exist(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"--print_example=.*absent\.json"):
        find_example(tmp_path, tmp_path / "absent.json")


def test_the_command_names_the_file_as_seen_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = Example(write(tmp_path / "model"), None)
    monkeypatch.chdir(tmp_path)

    assert example.command(URL) == f"curl -d @model/assets.extra/predict_request.json {URL}"
