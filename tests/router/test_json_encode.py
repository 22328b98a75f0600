"""REST replies are what RapidJSON's pretty writer prints, with printf's digits."""

from __future__ import annotations

import json
import math
import re
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shardserve.batching.errors import InvalidArgument
from shardserve.router.json_codec import Form
from shardserve.router.json_encode import (
    encode_classifications,
    encode_error,
    encode_predict,
    encode_regressions,
)
from shardserve.router.json_numbers import join_numbers
from shardserve.router.tensor_types import BY_NUMBER

TYPES = {kind.name: kind for kind in BY_NUMBER.values()}

NUMBERS = ["float32", "float64", "int32", "int64", "int16", "int8", "uint8", "uint32", "uint64",
           "bool"]  # fmt: skip

shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)
arrays = st.sampled_from(NUMBERS).flatmap(
    lambda dtype: hnp.arrays(
        dtype, shapes, elements={"allow_nan": False} if dtype.startswith("float") else None
    )
)


def printed(value: float, digits: int) -> str:
    """A float as C++ prints it: `%g`, then as many digits as its type needs."""
    if not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    text = f"{value:g}"
    same = np.float32(text) == np.float32(value) if digits == 9 else float(text) == value
    text = text if same else f"{value:.{digits}g}"
    return text if "." in text or "e" in text else text + ".0"


# Digits

float32_bits = st.integers(0, 2**32 - 1).map(lambda n: np.uint32(n).view(np.float32).item())
float64_bits = st.integers(0, 2**64 - 1).map(lambda n: np.uint64(n).view(np.float64).item())
decimals = st.builds(
    lambda digits, power: float(f"{digits}e{power}"), st.integers(1, 10**7), st.integers(-52, 31)
)
dyadics = st.builds(math.ldexp, st.integers(-4096, 4096), st.integers(-60, 60))


@given(st.lists(float32_bits | decimals | dyadics, min_size=1, max_size=30))
@settings(max_examples=300)
def test_floats_have_printf_s_digits(values: list[float]) -> None:
    with np.errstate(over="ignore"):
        array = np.array(values, np.float32)
    texts = join_numbers(array, (b" ",), ()).decode().split(" ")
    assert texts == [printed(value, 9) for value in array.tolist()]


@given(st.lists(float64_bits | decimals | dyadics, min_size=1, max_size=30))
@settings(max_examples=300)
def test_doubles_have_printf_s_digits(values: list[float]) -> None:
    texts = join_numbers(np.array(values), (b" ",), ()).decode().split(" ")
    assert texts == [printed(value, 17) for value in values]


@given(hnp.arrays(st.sampled_from(NUMBERS[2:-1]), st.integers(1, 30)))
def test_integers_have_all_their_digits(array: np.ndarray) -> None:
    assert join_numbers(array, (b" ",), ()).decode().split(" ") == list(map(str, array.tolist()))


def test_every_power_of_two_is_right_to_its_last_digit() -> None:
    for array, digits in (
        (np.ldexp(np.float32(1), np.arange(-149, 128)).astype(np.float32), 9),
        (np.ldexp(1.0, np.arange(-1074, 1024)), 17),
    ):
        texts = join_numbers(array, (b" ",), ()).decode().split(" ")
        assert texts == [printed(value, digits) for value in array.tolist()]


def test_every_exponent_is_right_to_its_last_digit() -> None:
    random = np.random.default_rng(0)
    for bits, digits in (
        (np.repeat(np.arange(255, dtype=np.uint32) << np.uint32(23), 12), 9),
        (np.repeat(np.arange(2047, dtype=np.uint64) << np.uint64(52), 2), 17),
    ):
        mantissas = random.integers(0, bits[bits > 0][0], len(bits), bits.dtype)
        array = (bits | mantissas).view(f"f{bits.itemsize}")
        texts = join_numbers(array, (b" ",), ()).decode().split(" ")
        assert texts == [printed(value, digits) for value in array.tolist()]


def test_numbers_beside_powers_of_ten_have_all_their_digits() -> None:
    powers = 10 ** np.arange(20, dtype=np.uint64)
    array = np.concatenate([powers - np.uint64(1), powers, powers + np.uint64(1)])
    assert join_numbers(array, (b" ",), ()).decode().split(" ") == list(map(str, array.tolist()))
    bits = (10.0 ** np.arange(-44, 39)).astype(np.float32).view(np.int32)[:, None] + np.arange(
        -1, 2
    )
    floats = bits.ravel().view(np.float32)
    texts = join_numbers(floats, (b" ",), ()).decode().split(" ")
    assert texts == [printed(value, 9) for value in floats.tolist()]


def test_six_digits_are_enough_beside_every_power_of_ten() -> None:
    texts = [f"9.99999e{power:+03d}" for power in range(-307, 308) if not -5 < power < 6]
    assert join_numbers(np.array(texts, float), (b" ",), ()).decode().split(" ") == texts


def test_ties_and_the_smallest_floats_are_right_to_their_last_digit() -> None:
    ties = np.arange(1, 100 * 256, dtype=np.float32) / np.float32(256)
    smallest = np.random.default_rng(0).integers(1, 1 << 23, 20_000).astype(np.uint32)
    few_bits = np.arange(1, 5_000, dtype=np.uint32)
    array = np.concatenate([ties, smallest.view(np.float32), few_bits.view(np.float32)])
    texts = join_numbers(array, (b" ",), ()).decode().split(" ")
    assert texts == [printed(value, 9) for value in array.tolist()]


# Memory


def bytes_kept(write: Callable[[], object]) -> tuple[int, int]:
    """How many are allocated afterwards, and how many at most."""
    tracemalloc.start()
    write()
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return kept, most


def test_what_is_kept_of_replies_is_bounded_however_deep_their_lists_are() -> None:
    def write() -> None:
        for rank in range(1, 65):
            for form in Form:
                encode_predict({"y": np.zeros((1,) * rank, np.float32)}, form)
                encode_predict({name: np.zeros((1,) * rank, np.int32) for name in "xy"}, form)

    assert bytes_kept(write)[0] < 500_000


def test_nothing_is_kept_of_replies_of_other_sizes() -> None:
    def write(sizes: range) -> None:
        for size in sizes:
            encode_predict({"y": np.zeros((1, 2, size), np.float32)}, Form.COLUMNS)
            encode_predict({"y": np.zeros((1, 2, size), np.float32)}, Form.ROWS)

    write(range(2, 9))
    assert bytes_kept(lambda: write(range(9, 500)))[0] < 500_000


def test_a_number_that_python_writes_takes_no_memory_for_the_others() -> None:
    certain = np.ones(100_000)
    doubtful = certain.copy()
    doubtful[[0, 70_000]] = 1e300, 1e-300
    texts = join_numbers(doubtful, (b" ",), ()).decode().split(" ")
    assert (texts[0], texts[1], texts[70_000], texts[-1]) == ("1e+300", "1.0", "1e-300", "1.0")
    _, few = bytes_kept(lambda: join_numbers(certain, (b" ",), ()))
    _, many = bytes_kept(lambda: join_numbers(doubtful, (b" ",), ()))
    assert many < few + 200_000


# Layout


class PrettyWriter:
    """What RapidJSON's writer puts between values; arrays on one line where it is told so."""

    def __init__(self) -> None:
        self.text = ""
        self.line = False
        self._counts: list[int] = []
        self._objects: list[bool] = []

    def value(self, text: str) -> None:
        self._prefix()
        self.text += text

    def start(self, bracket: str) -> None:
        self.value(bracket)
        self._counts.append(0)
        self._objects.append(bracket == "{")

    def end(self, bracket: str) -> None:
        count = self._counts.pop()
        self._objects.pop()
        if count and (bracket == "}" or not self.line):
            self._new_line()
        self.text += bracket

    def _prefix(self) -> None:
        if not self._counts:
            return
        count, self._counts[-1] = self._counts[-1], self._counts[-1] + 1
        if not self._objects[-1]:
            self.text += ("," if count else "") + (" " if count and self.line else "")
            if not self.line:
                self._new_line()
        elif count % 2:
            self.text += ": "
        else:
            self.text += "," if count else ""
            self._new_line()

    def _new_line(self) -> None:
        self.text += "\n" + "    " * len(self._counts)


def write(writer: PrettyWriter, array: Any, as_bytes: bool) -> None:
    if not isinstance(array, np.ndarray) or array.ndim == 0:
        write_element(writer, array.item() if hasattr(array, "item") else array, array, as_bytes)
        return
    writer.start("[")
    for part in array:
        write(writer, part, as_bytes)
    writer.end("]")


def write_element(writer: PrettyWriter, value: Any, array: Any, as_bytes: bool) -> None:
    if isinstance(value, bytes) and as_bytes:
        import base64

        writer.start("{")
        writer.value('"b64"')
        writer.value(f'"{base64.b64encode(value).decode()}"')
        writer.end("}")
    elif isinstance(value, bytes):
        writer.value(json.dumps(value.decode()))
    elif isinstance(value, float):
        writer.value(printed(value, 9 if array.dtype == np.float32 else 17))
    else:
        writer.value(json.dumps(value))


def rows_written(outputs: dict[str, np.ndarray]) -> str:
    writer = PrettyWriter()
    writer.start("{")
    writer.value('"predictions"')
    writer.start("[")
    for row in range(len(next(iter(outputs.values())))):
        if len(outputs) > 1:
            writer.start("{")
        writer.line = True
        for name, array in outputs.items():
            if len(outputs) > 1:
                writer.value(json.dumps(name))
            write(writer, array[row], name.endswith("_bytes"))
        writer.line = False
        if len(outputs) > 1:
            writer.end("}")
    writer.end("]")
    writer.end("}")
    return writer.text


def columns_written(outputs: dict[str, np.ndarray]) -> str:
    writer = PrettyWriter()
    writer.start("{")
    writer.value('"outputs"')
    if len(outputs) > 1:
        writer.start("{")
    for name, array in outputs.items():
        if len(outputs) > 1:
            writer.value(json.dumps(name))
        write(writer, array, name.endswith("_bytes"))
    if len(outputs) > 1:
        writer.end("}")
    writer.end("}")
    return writer.text


texts = hnp.arrays(
    object, shapes, elements=st.text("ab", max_size=3).map(str.encode), fill=st.nothing()
)
named = st.dictionaries(st.sampled_from(["y", "z", "x_bytes"]), arrays | texts, min_size=1)


@given(named)
@settings(max_examples=200)
def test_columns_are_laid_out_as_rapidjson_does(outputs: dict[str, np.ndarray]) -> None:
    assert encode_predict(outputs, Form.COLUMNS).decode() == columns_written(outputs)


@given(named, st.integers(0, 3))
@settings(max_examples=200)
def test_rows_are_laid_out_as_rapidjson_does(outputs: dict[str, np.ndarray], rows: int) -> None:
    same = {name: np.stack([array] * rows) if rows else np.zeros((0, *array.shape), array.dtype)
            for name, array in outputs.items()}  # fmt: skip
    assert encode_predict(same, Form.ROWS).decode() == rows_written(same)


def reply(form: Form, **outputs: Any) -> str:
    return encode_predict(outputs, form).decode("utf-8", "surrogateescape")


def compact(text: str) -> str:
    return re.sub(r"\s", "", text)


def test_a_reply_looks_as_the_original_s() -> None:
    y = np.array([2.5, 3.0, 4.5], np.float32)
    assert reply(Form.ROWS, y=y) == '{\n    "predictions": [2.5, 3.0, 4.5\n    ]\n}'
    assert reply(Form.COLUMNS, y=y[:1]) == '{\n    "outputs": [\n        2.5\n    ]\n}'
    assert encode_error('no "x"') == b'{\n    "error": "no \\"x\\""\n}'


def test_one_output_stands_alone_and_several_are_named() -> None:
    y, z = np.array([1.0, 2.5], np.float32), np.array([[1, 2], [3, 4]])
    assert json.loads(reply(Form.ROWS, y=y)) == {"predictions": [1.0, 2.5]}
    assert json.loads(reply(Form.COLUMNS, y=y)) == {"outputs": [1.0, 2.5]}
    assert json.loads(reply(Form.ROWS, y=y, z=z)) == {
        "predictions": [{"y": 1.0, "z": [1, 2]}, {"y": 2.5, "z": [3, 4]}]
    }
    assert json.loads(reply(Form.COLUMNS, y=y, z=z)) == {
        "outputs": {"y": [1.0, 2.5], "z": [[1, 2], [3, 4]]}
    }


def test_strings_are_text_and_outputs_named_bytes_are_base64() -> None:
    raw = np.array([b"a", b"\xff"], object)
    assert compact(reply(Form.ROWS, text=raw)) == '{"predictions":["a","\udcff"]}'
    assert compact(reply(Form.ROWS, my_bytes=raw)) == (
        '{"predictions":[{"b64":"YQ=="},{"b64":"/w=="}]}'
    )
    assert compact(reply(Form.COLUMNS, text=raw.reshape(1, 2, 1))) == (
        '{"outputs":[[["a"],["\udcff"]]]}'
    )


def test_numbers_named_bytes_are_numbers() -> None:
    assert json.loads(reply(Form.ROWS, my_bytes=np.array([1], np.uint8))) == {"predictions": [1]}


@pytest.mark.parametrize("value", [np.float32(3), np.int64(3), np.bool_(True), np.float32(np.nan)])
def test_scalars_may_be_columns_and_not_rows(value: Any) -> None:
    array = np.asarray(value)
    assert np.array_equal(
        json.loads(encode_predict({"y": array}, Form.COLUMNS))["outputs"], value, equal_nan=True
    )
    with pytest.raises(InvalidArgument, match="Tensor name: y has no shape information"):
        encode_predict({"y": array}, Form.ROWS)


def test_a_reply_of_no_rows_is_an_empty_list() -> None:
    empty = np.zeros((0, 3), np.float32)
    assert compact(reply(Form.ROWS, y=empty)) == '{"predictions":[]}'
    assert compact(reply(Form.ROWS, y=empty, z=empty)) == '{"predictions":[]}'


def test_outputs_by_row_must_have_the_same_number_of_rows() -> None:
    with pytest.raises(InvalidArgument, match="z has inconsistent batch size: 1 expecting: 2"):
        encode_predict({"y": np.ones(2), "z": np.ones(1)}, Form.ROWS)


@pytest.mark.parametrize("kind", ["half", "bfloat16", "uint16", "complex64"])
def test_types_that_json_cannot_carry_are_refused(kind: str) -> None:
    array = np.zeros(1, TYPES[kind].numpy)
    for form in Form:
        with pytest.raises(InvalidArgument, match=f"JSON value for tensor type: {kind}"):
            encode_predict({"y": array}, form)


def test_no_outputs_are_no_reply() -> None:
    with pytest.raises(InvalidArgument, match="empty tensor map"):
        encode_predict({}, Form.ROWS)


def test_arrays_that_do_not_lie_in_order_are_written_in_order() -> None:
    transposed = np.arange(4).reshape(2, 2).T
    assert json.loads(reply(Form.ROWS, y=transposed)) == {"predictions": [[0, 2], [1, 3]]}
    strided = np.arange(20, dtype=np.float32)[::2]
    assert json.loads(reply(Form.ROWS, y=strided))["predictions"] == strided.tolist()


# Classifications and regressions


def test_classes_are_pairs_of_label_and_score() -> None:
    labels = np.array([[b"a", b"b"]], object)
    scores = np.array([[0.1, 1 / 3]], np.float32)
    assert encode_classifications(labels, scores) == (
        b'{\n    "results": [[["a", 0.1], ["b", 0.333333343]]\n    ]\n}'
    )
    assert json.loads(encode_classifications(labels, None)) == {
        "results": [[["a", 0.0], ["b", 0.0]]]
    }
    assert json.loads(encode_classifications(None, scores[:, :1])) == {"results": [[["", 0.1]]]}
    assert json.loads(encode_classifications(None, scores[:, :0])) == {"results": [[]]}


def test_regressions_are_numbers() -> None:
    assert encode_regressions(np.array([1.5, 2], np.float32)) == b'{\n    "results": [1.5, 2.0]\n}'


def test_no_results_are_no_reply() -> None:
    with pytest.raises(InvalidArgument, match="Cannot convert empty ClassificationResults"):
        encode_classifications(None, np.zeros((0, 2), np.float32))
    with pytest.raises(InvalidArgument, match="Cannot convert empty RegressionResults"):
        encode_regressions(np.zeros(0, np.float32))
