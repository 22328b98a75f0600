"""Answers classify, regress and multi-inference: a model's graph parses the Examples."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardserve.batching.errors import InvalidArgument, Unimplemented
from shardserve.router.catalog import ModelSpec
from shardserve.router.examples import example_strings, parse_examples
from shardserve.router.inference import (
    CLASSIFY,
    INPUTS,
    REGRESS,
    check_method_name,
    check_takes_strings,
    classes_of,
    outputs_for,
    regressions_of,
    signature_for_examples,
)
from shardserve.router.json_encode import encode_classifications, encode_regressions
from shardserve.router.model_specs import served_spec, spec_from, spec_message, spec_of
from shardserve.router.predict import DEFAULT_SIGNATURE
from shardserve.router.proto_codec import message_field
from shardserve.router.request_steps import RequestSteps
from shardserve.router.result_codec import encode_classification_result, encode_regression_result
from shardserve.router.serialized_examples import encode_examples_request
from shardserve.router.servable import Array, RequestContext, Servable, nbytes_of

#: The field of PredictionLog that logs each method.
_LOGS = {CLASSIFY: "classify_log", REGRESS: "regress_log"}


@dataclass(frozen=True)
class _Task:
    """A signature to run on Examples, as `method` has it."""

    signature: str
    method: str
    outputs: tuple[str, ...]

    def encoded(self, outputs: Mapping[str, Array], count: int) -> bytes:
        """A serialised ClassificationResult or RegressionResult."""
        if self.method == CLASSIFY:
            return encode_classification_result(classes_of(outputs, count))
        return encode_regression_result(regressions_of(outputs, count))

    def response(self, outputs: Mapping[str, Array], count: int, spec: bytes) -> bytes:
        """A serialised ClassificationResponse or RegressionResponse of the ModelSpec `spec`."""
        return message_field(1, self.encoded(outputs, count)) + message_field(2, spec)

    def as_json(self, outputs: Mapping[str, Array], count: int) -> bytes:
        if self.method == REGRESS:
            return encode_regressions(regressions_of(outputs, count))
        classes = classes_of(outputs, count)
        return encode_classifications(classes.labels, classes.scores)


class ExampleHandlers:
    """As `Handlers`, which has one. Requests are of `serialized_examples`."""

    def __init__(self, steps: RequestSteps, check_method_names: bool = False) -> None:
        self._steps = steps
        self._check_method_names = check_method_names

    async def classify(self, request: Any, context: RequestContext) -> bytes:
        """A serialised ClassificationResponse."""
        return await self._answer(CLASSIFY, request, context)

    async def regress(self, request: Any, context: RequestContext) -> bytes:
        """A serialised RegressionResponse."""
        return await self._answer(REGRESS, request, context)

    async def classify_json(self, spec: ModelSpec, body: bytes, context: RequestContext) -> bytes:
        """The reply to a REST classify request."""
        return await self._answer_json(CLASSIFY, spec, body, context)

    async def regress_json(self, spec: ModelSpec, body: bytes, context: RequestContext) -> bytes:
        """The reply to a REST regress request."""
        return await self._answer_json(REGRESS, spec, body, context)

    async def multi_inference(
        self, request: Any, context: RequestContext, count: Callable[[int], None] = lambda _: None
    ) -> bytes:
        """A serialised MultiInferenceResponse, its results in the order of the tasks.

        All signatures run on the same Examples, in one run where the servable can do that. `count`
        is told how many there were.
        """
        first = spec_from(request.tasks[0].model_spec) if request.tasks else ModelSpec("")
        servable = self._steps.resolve(first, context)
        tasks = self._tasks(servable, request.tasks)
        examples = example_strings(request.input)
        outputs = await _run_all(servable, tasks, examples, context)
        count(len(examples))
        size = sum([_size(results) for results in outputs])

        def encode() -> bytes:
            encoded = [
                _multi_result(first.name, servable.version, task, results, len(examples))
                for task, results in zip(tasks, outputs, strict=True)
            ]
            return b"".join(encoded)

        reply = await self._steps.encode(size, encode, context)
        log = self._steps.logs.sampled(first.name)
        if log is not None:
            served = served_spec(first.name, "", servable.version)
            log.add_message("multi_inference_log", request, reply, served)
        return reply

    async def _answer(self, method: str, request: Any, context: RequestContext) -> bytes:
        servable = self._steps.resolve(spec_of(request), context)
        task = self._task(servable, request.model_spec.signature_name, method)
        examples = example_strings(request.input)
        outputs = await _run(servable, task, examples, context)
        spec = served_spec(request.model_spec.name, task.signature, servable.version)

        reply = await self._steps.encode(
            _size(outputs), lambda: task.response(outputs, len(examples), spec), context
        )
        log = self._steps.logs.sampled(request.model_spec.name)
        if log is not None:
            log.add_message(_LOGS[method], request, reply, spec)
        return reply

    async def _answer_json(
        self, method: str, spec: ModelSpec, body: bytes, context: RequestContext
    ) -> bytes:
        servable = self._steps.resolve_for_body(spec, body, parse_examples, context)
        name, examples = await self._steps.decode(len(body), lambda: parse_examples(body), context)
        task = self._task(servable, name, method)
        outputs = await _run(servable, task, examples, context)
        reply = await self._steps.encode(
            _size(outputs), lambda: task.as_json(outputs, len(examples)), context
        )
        log = self._steps.logs.sampled(spec.name)
        if log is not None:
            served = served_spec(spec.name, task.signature, servable.version)
            asked = spec_message(spec, task.signature)
            log.add(
                _LOGS[method],
                lambda: encode_examples_request(asked, examples),
                lambda: task.response(outputs, len(examples), served),
                served,
                nbytes_of([examples, *outputs.values()]),
            )
        return reply

    def _task(self, servable: Servable, name: str, method: str) -> _Task:
        name = name or DEFAULT_SIGNATURE
        signature = signature_for_examples(servable, name)
        if self._check_method_names:
            check_method_name(signature, method)
        outputs = outputs_for(servable, name, method)
        check_takes_strings(signature)
        return _Task(name, method, outputs)

    def _tasks(self, servable: Servable, asked: Sequence[Any]) -> list[_Task]:
        tasks: list[_Task] = []
        for task in asked:
            self._check_task(servable, asked[0].model_spec.name, task)
            name = task.model_spec.signature_name or DEFAULT_SIGNATURE
            if any(name == other.signature for other in tasks):
                raise InvalidArgument(f"Duplicate evaluation of signature: {name}")
            if name not in servable.signatures:
                raise InvalidArgument(f"Requested signature not found in model graph: {name}")
            if task.method_name not in (CLASSIFY, REGRESS):
                raise Unimplemented(f"Unsupported signature method_name: {task.method_name}")
            tasks.append(self._task(servable, name, task.method_name))
        _check_one_input(servable, tasks)
        return tasks

    def _check_task(self, servable: Servable, model: str, task: Any) -> None:
        if not task.model_spec.name:
            raise InvalidArgument("Found ModelSpec with an empty model name.")
        if task.model_spec.name != model:
            raise InvalidArgument(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )


def _check_one_input(servable: Servable, tasks: Sequence[_Task]) -> None:
    inputs = {servable.signatures[task.signature].inputs[INPUTS].tensor for task in tasks}
    if len(inputs) > 1:
        raise InvalidArgument("Input tensor must be the same for all Signatures.")


async def _run(
    servable: Servable, task: _Task, examples: Array, context: RequestContext
) -> dict[str, Array]:
    return await servable.run(task.signature, {INPUTS: examples}, task.outputs, context)


async def _run_all(
    servable: Servable, tasks: Sequence[_Task], examples: Array, context: RequestContext
) -> list[dict[str, Array]]:
    run_tensors = getattr(servable, "run_tensors", None)
    if run_tensors is None or len(tasks) == 1:
        return await _run_each(servable, tasks, examples, context)
    of_task = [
        {alias: servable.signatures[task.signature].outputs[alias].tensor for alias in task.outputs}
        for task in tasks
    ]
    fetches = list(dict.fromkeys(tensor for tensors in of_task for tensor in tensors.values()))
    fed = servable.signatures[tasks[0].signature].inputs[INPUTS].tensor
    values = await run_tensors({fed: examples}, fetches, (), context)
    by_tensor = dict(zip(fetches, values, strict=True))
    return [{a: by_tensor[tensor] for a, tensor in tensors.items()} for tensors in of_task]


async def _run_each(
    servable: Servable, tasks: Sequence[_Task], examples: Array, context: RequestContext
) -> list[dict[str, Array]]:
    """One run for each signature, beside each other; the first error ends them all."""
    runs = [asyncio.ensure_future(_run(servable, task, examples, context)) for task in tasks]
    try:
        return await asyncio.gather(*runs)
    finally:
        for run in runs:
            run.cancel()


def _multi_result(
    model: str, version: int, task: _Task, outputs: Mapping[str, Array], count: int
) -> bytes:
    spec = served_spec(model, task.signature, version)
    field = 2 if task.method == CLASSIFY else 3
    result = message_field(field, task.encoded(outputs, count))
    return message_field(1, message_field(1, spec) + result)


def _size(outputs: Mapping[str, Array]) -> int:
    return sum([array.size for array in outputs.values()])
