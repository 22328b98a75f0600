"""Signatures made of steps: each request gets what TensorFlow gives it alone."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2

from shardserve.batching.errors import DeadlineExceeded, InvalidArgument, Unavailable
from shardserve.router.catalog import Catalog, Model, ModelSpec, State, Version
from shardserve.router.handlers import Handlers
from shardserve.router.sequences import SequenceServable
from shardserve.router.servable import RequestContext
from shardserve.router.whole import load_whole
from shardserve.shards.model import PlanOptions
from shardserve.shards.sequences_form import SequenceEntry
from tests.step_models import (
    STOP_TOKEN,
    VOCABULARY,
    WIDTH,
    export_decoder,
)
from tests.stepped import PLACES, Places
from tests.uncut import Uncut

#: The same kernels on another number of rows add in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}

ENCODE = {
    "step": "step",
    "state": {"h": "new_h", "c": "new_c"},
    "per_step": {"x": "x"},
    "lengths": "lengths",
    "returns": {"output": "all", "new_h": "last", "new_c": "last"},
    "batching": {"max_batch_size": 8},
}
DECODE = {
    "step": "next",
    "state": {"state": "new_state"},
    "feedback": {"token": "next_token"},
    "initial": {"token": {"value": 1}, "state": {"output": "state"}},
    "before": "encode",
    "stop": {"output": "next_token", "equals": STOP_TOKEN},
    "max_steps": 40,
    "returns": {"next_token": "all", "new_state": "last"},
    "batching": {"max_batch_size": 4},
}
HALVE = {
    "step": "step",
    "state": {"x": "half"},
    "initial": {"x": {"input": "x"}},
    "max_steps": 3,
    "returns": {"half": "last"},
    "batching": {"max_batch_size": 4},
}
SUM = {
    "step": "step",
    "state": {"total": "sum", "text": "longer"},
    "initial": {"total": {"input": "start"}},
    "per_step": {"x": "numbers"},
    "returns": {"sum": "last", "longer": "all"},
    "batching": {"max_batch_size": 4, "max_enqueued_batches": 2, "allowed_batch_sizes": [2, 4]},
}


@pytest.fixture(scope="module")
def encoder_dir(saved_model: Callable[[str], Path]) -> Path:
    return saved_model("encoder")


@pytest.fixture(scope="module")
def decoder_dir(saved_model: Callable[[str], Path]) -> Path:
    return saved_model("decoder")


@pytest.fixture(scope="module")
def fragile_dir(saved_model: Callable[[str], Path]) -> Path:
    return saved_model("fragile")


@pytest.fixture(params=PLACES)
async def serve(request, threads, tmp_path):
    """Serves a model with sequences, whoever steps them."""
    async with AsyncExitStack() as stack:
        yield Places(request.param, threads, tmp_path, stack).serve


def context(deadline=math.inf) -> RequestContext:
    return RequestContext("test", deadline)


async def ask(servable, name, inputs, outputs=None, deadline=math.inf):
    signature = servable.signatures[name]
    inputs = {**signature.defaults, **inputs}
    return await servable.run(name, inputs, outputs or list(signature.outputs), context(deadline))


def lengths_of(count, seed=0):
    return np.random.default_rng(seed).integers(1, 30, count)


async def test_encoder_requests_of_many_lengths_get_what_each_gets_alone(serve, encoder_dir):
    stepped = await serve(encoder_dir, encode=ENCODE)
    servable = stepped.servable
    rng = np.random.default_rng(3)
    requests = [
        rng.normal(size=(rows, length, WIDTH)).astype(np.float32)
        for rows, length in zip(rng.integers(1, 4, 30), lengths_of(30), strict=True)
    ]
    answers = await asyncio.gather(*[ask(servable, "encode", {"x": x}) for x in requests])
    alone = Uncut(encoder_dir)
    for x, answer in zip(requests, answers, strict=True):
        expected = alone.answer("serving_default", {"x": x})
        np.testing.assert_allclose(answer["output"], expected["outputs"], **CLOSE)
        np.testing.assert_allclose(answer["new_h"], expected["h"], **CLOSE)
        np.testing.assert_allclose(answer["new_c"], expected["c"], **CLOSE)
        assert answer["steps"].tolist() == [x.shape[1]] * len(x)
    alone.close()
    counts = stepped.counts()["sequences/encode"]
    assert counts.rows == sum(x.shape[0] * x.shape[1] for x in requests)
    assert counts.batches < counts.rows / 4


async def test_rows_of_several_lengths_end_where_they_end(serve, encoder_dir):
    stepped = await serve(encoder_dir, encode=ENCODE)
    servable = stepped.servable
    x = np.random.default_rng(1).normal(size=(3, 7, WIDTH)).astype(np.float32)
    lengths = np.array([7, 2, 4])
    answer = await ask(servable, "encode", {"x": x, "lengths": lengths})
    alone = Uncut(encoder_dir)
    for row, length in enumerate(lengths):
        expected = alone.answer("serving_default", {"x": x[row : row + 1, :length]})
        np.testing.assert_allclose(answer["output"][row, :length], expected["outputs"][0], **CLOSE)
        assert not answer["output"][row, length:].any()
        np.testing.assert_allclose(answer["new_h"][row], expected["h"][0], **CLOSE)
    alone.close()
    assert answer["output"].shape[1] == 7
    assert answer["steps"].tolist() == [7, 2, 4]


async def test_a_single_sequence_needs_no_rows(serve, encoder_dir):
    stepped = await serve(encoder_dir, encode=ENCODE)
    servable = stepped.servable
    x = np.random.default_rng(1).normal(size=(5, WIDTH)).astype(np.float32)
    one, many = await asyncio.gather(
        ask(servable, "encode", {"x": x}), ask(servable, "encode", {"x": x[None]})
    )
    for alias, array in one.items():
        np.testing.assert_allclose(array, many[alias][0], **CLOSE)


async def test_a_short_sequence_does_not_wait_for_a_long_mate(serve, encoder_dir):
    stepped = await serve(encoder_dir, encode=ENCODE)
    servable = stepped.servable
    zeros = np.zeros((1, 400, WIDTH), np.float32)
    long = asyncio.ensure_future(ask(servable, "encode", {"x": zeros}))
    await asyncio.sleep(0)
    await ask(servable, "encode", {"x": zeros[:, :3]})
    assert not long.done()
    assert (await long)["steps"].tolist() == [400]


@pytest.mark.parametrize("sharded", [False, True])
async def test_a_greedy_decoder_says_what_it_says_alone(serve, sharded, decoder_dir):
    directory, options = decoder_dir, PlanOptions()
    if sharded:
        directory = decoder_dir.with_name("sharded")
        options = PlanOptions(shards=2, threshold=VOCABULARY * WIDTH * 4)
        if not directory.exists():
            export_decoder(directory, whole=False)
    stepped = await serve(directory, options, stepped_here={"encode": {}}, decode=DECODE)
    servable = stepped.servable
    rng = np.random.default_rng(4)
    sources = [rng.integers(3, VOCABULARY, (1, n)) for n in lengths_of(25, seed=1)]
    answers = await asyncio.gather(*[ask(servable, "decode", {"source": s}) for s in sources])
    alone = Uncut(decoder_dir)
    steps = set()
    for source, answer in zip(sources, answers, strict=True):
        expected = alone.answer("serving_default", {"source": source, "most": np.int64(40)})
        assert answer["next_token"].tolist() == expected["tokens"].tolist()
        np.testing.assert_allclose(answer["new_state"], expected["state"], **CLOSE)
        assert answer["steps"].tolist() == [expected["tokens"].shape[1]]
        steps |= set(answer["steps"].tolist())
    alone.close()
    encoders = [one for name, one in stepped.counts().items() if name.startswith("loops/")]
    assert [one.tasks for one in encoders] == [25]
    assert len(steps) > 3, "they stop at different steps"
    assert 40 not in steps or len(steps - {40}) > 2


async def test_steps_hold_no_slot_for_which_their_own_regions_wait(serve, saved_model):
    stepped = await serve(saved_model("halving"), one=HALVE, other=HALVE, another=HALVE)
    x = np.full((2, WIDTH), 8.0, np.float32)
    names = ("one", "other", "another")
    async with asyncio.timeout(60):
        answers = await asyncio.gather(*[ask(stepped.servable, n, {"x": x}) for n in names])
    for answer in answers:
        assert answer["half"].tolist() == [[1.0] * WIDTH] * 2


async def test_only_the_request_whose_sequence_fails_fails(serve, fragile_dir):
    stepped = await serve(fragile_dir, sum=SUM)
    servable = stepped.servable

    def request(*numbers):
        return {"numbers": np.array([numbers]), "start": np.array([100])}

    asked = [request(1, 2, 3), request(1, -1, 5), request(4), request(0, 7, 7, 7), request(-3)]
    answers = await asyncio.gather(
        *[ask(servable, "sum", inputs) for inputs in asked], return_exceptions=True
    )
    for place in (1, 4):
        assert isinstance(answers[place], InvalidArgument)
        assert "assertion failed" in answers[place].message
    assert answers[0]["sum"].tolist() == [106]
    assert answers[0]["longer"].tolist() == [[b"1", b"12", b"123"]]
    assert answers[2]["sum"].tolist() == [104]
    assert answers[3]["sum"].tolist() == [121]
    assert stepped.counts()["sequences/sum"].running_batches == 0


async def test_shorter_rows_of_text_are_padded_with_empty_strings(serve, fragile_dir):
    stepped = await serve(fragile_dir, sum=SUM | {"lengths": "lengths"})
    servable = stepped.servable
    inputs = {"numbers": np.ones((2, 3), int), "start": np.zeros(2, int)}
    answer = await ask(servable, "sum", inputs | {"lengths": np.array([1, 3])})
    assert answer["longer"].tolist() == [[b"1", b"", b""], [b"1", b"11", b"111"]]


async def test_a_request_that_is_cancelled_leaves_its_row(serve, encoder_dir):
    stepped = await serve(encoder_dir, encode=ENCODE)
    servable = stepped.servable
    zeros = np.zeros((4, 400, WIDTH), np.float32)
    gone = asyncio.ensure_future(ask(servable, "encode", {"x": zeros}))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    await ask(servable, "encode", {"x": zeros[:, :2]})
    await stepped.drain()
    assert stepped.counts()["sequences/encode"].rows < 4 * 400
    with pytest.raises(Unavailable, match="being unloaded"):
        await ask(servable, "encode", {"x": zeros})


async def test_a_request_ends_at_its_deadline(serve, encoder_dir):
    stepped = await serve(encoder_dir, encode=ENCODE | {"max_steps": 100_000})
    servable = stepped.servable
    loop = asyncio.get_running_loop()
    zeros = np.zeros((1, 100_000, WIDTH), np.float32)
    with pytest.raises(DeadlineExceeded):
        await ask(servable, "encode", {"x": zeros}, deadline=loop.time() + 0.05)
    await stepped.drain()


async def test_a_full_queue_refuses_at_once(serve, fragile_dir):
    stepped = await serve(fragile_dir, sum=SUM)
    servable = stepped.servable
    inputs = {"numbers": np.ones((4, 400), int), "start": np.zeros(4, int)}
    asked = [ask(servable, "sum", inputs) for _ in range(5)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, Unavailable)]
    assert "max_enqueued_batches is 2" in refused[0].message
    assert len(refused) == 2
    with pytest.raises(InvalidArgument, match="larger than maximum input batch size 4"):
        await ask(servable, "sum", {k: np.concatenate([v, v]) for k, v in inputs.items()})


async def test_it_is_a_signature_like_any_other(serve, encoder_dir, threads):
    stepped = await serve(encoder_dir, encode=ENCODE | {"lengths": None})
    servable = stepped.servable
    catalog = Catalog({"m": Model({1: Version(State.AVAILABLE, servable)})})
    handlers = Handlers(catalog, threads)
    body = b'{"signature_name": "encode", "instances": [[[0,0,0,0,0,0]]]}'
    reply = await handlers.predict_json(ModelSpec("m"), body, context())
    (prediction,) = json.loads(reply)["predictions"]
    assert prediction["steps"] == 1
    metadata = handlers.metadata(
        get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec={"name": "m"}, metadata_field=["signature_def"]
        )
    )
    signatures = get_model_metadata_pb2.SignatureDefMap()
    metadata.metadata["signature_def"].Unpack(signatures)
    described = signatures.signature_def["encode"]
    assert [d.size for d in described.inputs["x"].tensor_shape.dim] == [-1, -1, WIDTH]
    assert [d.size for d in described.outputs["new_h"].tensor_shape.dim] == [-1, 9]
    request = predict_pb2.PredictRequest(model_spec={"name": "m", "signature_name": "step"})
    with pytest.raises(InvalidArgument):
        await handlers.predict(request, context())


MISFITS = [
    (
        {"x": np.zeros((1, 2, 3), "f")},
        r"input 'x' has shape \[1, 2, 3\]; it must be \[-1, -1, 6\]",
    ),
    ({"x": np.zeros(6, "f")}, r"input 'x' has shape \[6\]"),
    ({"x": np.zeros((1, 0, WIDTH), "f")}, "a sequence has 1 to 512 steps, not 0"),
    ({"x": np.zeros((1, 513, WIDTH), "f")}, "a sequence has 1 to 512 steps, not 513"),
    ({"x": np.zeros((0, 5, WIDTH), "f")}, "there is no sequence in the request"),
    ({"x": np.zeros((2, 5, WIDTH), "f"), "lengths": np.ones(3, int)}, "differ in their rows"),
    ({"x": np.zeros((1, 5, WIDTH), "f"), "lengths": np.array([6])}, "lengths are 1 to 5"),
]


async def test_what_does_not_fit_is_refused_by_name(serve, encoder_dir):
    stepped = await serve(encoder_dir, encode=ENCODE)
    for inputs, words in MISFITS:
        with pytest.raises(InvalidArgument, match=words):
            await ask(stepped.servable, "encode", inputs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"step": "stop"}, "sequences.e.step: the model has no signature 'stop'; it has: "),
        ({"state": {"h": "new_h"}}, "sequences.e.step: its input 'c' .* is in none of state"),
        (
            {"state": {"h": "new_h", "c": "cell"}},
            "sequences.e.state.c: signature 'step' has no output 'cell'",
        ),
        ({"per_step": {"y": "x"}}, "sequences.e.(step|per_step.y): "),
        (
            {"returns": {"outputs": "last"}},
            "sequences.e.returns.outputs: signature 'step' has no output 'outputs'",
        ),
        ({"state": {"h": "new_h", "c": "new_h"}}, "output 'new_h' is carried on twice"),
        (
            {"initial": {"h": {"output": "state"}}},
            "sequences.e.initial.h: output 'state' is of no signature: 'before' is not set",
        ),
        ({"lengths": "x"}, "sequences.e.lengths: input 'x' is taken already"),
    ],
)
def test_an_entry_that_does_not_fit_the_model_is_refused_by_its_field(
    encoder_dir, threads, change, words
):
    whole = load_whole("m", 1, encoder_dir, threads)
    entry = SequenceEntry.model_validate(ENCODE | change)
    with pytest.raises(InvalidArgument, match=words):
        SequenceServable(whole, whole, {"e": entry}, threads)
