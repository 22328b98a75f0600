"""The command line. Flags are spelled as TensorFlow Serving spells them, where it has them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ByteSize, TypeAdapter
from rich.console import Console

from shardserve.batching.errors import InvalidArgument, ServingError
from shardserve.batching.parameters import BatchingParameters, read_batching_parameters
from shardserve.cluster.model_config import ModelConfig, check_name
from shardserve.cluster.model_options import ModelOptions
from shardserve.cluster.options import (
    DoorOptions,
    Engine,
    Models,
    RayOptions,
    ServeOptions,
    check,
)
from shardserve.cluster.quiet import quiet_import
from shardserve.cluster.versions import locate
from shardserve.shards.model import DEFAULT_THRESHOLD, PlanOptions
from shardserve.shards.stages import BatchingOptions
from shardserve.shards.storage import Precision, Storage, Tier

BOOLEAN_FLAGS = frozenset(
    {
        "--enable_batching",
        "--enable_per_model_batching_parameters",
        "--stages",
        "--verify_checksums",
    }
)

app = typer.Typer(
    help="Serve TensorFlow SavedModels that are too big for one machine.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _bytes(text: str) -> int:
    return int(TypeAdapter(ByteSize).validate_python(text))


Directory = Annotated[Path, typer.Argument(metavar="DIR", help="Base path or version directory.")]
Shards = Annotated[int, typer.Option("--shards", min=1, help="Shards to cut the tables over.")]
Replicas = Annotated[
    int | None,
    typer.Option("--replicas", min=1, help="Processes for each shard; 1, or what the layout says."),
]
LayoutPath = Annotated[
    Path | None,
    typer.Option(
        "--layout", metavar="FILE", resolve_path=True, help="A layout file, instead of a plan."
    ),
]
Memory = Annotated[
    int | None,
    typer.Option(
        "--memory_per_shard",
        metavar="SIZE",
        parser=_bytes,
        help="Such as 20GiB; unbounded if unset.",
    ),
]
Threshold = Annotated[
    int,
    typer.Option(
        "--cut_threshold", metavar="SIZE", parser=_bytes, help="Variables this large are cut."
    ),
]
TierOption = Annotated[
    Tier, typer.Option("--tier", help="Where tables lie, if there is no layout.")
]
PrecisionOption = Annotated[
    Precision,
    typer.Option("--precision", help="What float32 tables are kept as, if there is no layout."),
]
StagesPath = Annotated[
    Path | None,
    typer.Option(
        "--stages_file",
        metavar="FILE",
        resolve_path=True,
        help="How each stage is batched, and regions of the graph that are stages of their own.",
    ),
]
Tags = Annotated[str, typer.Option("--saved_model_tags", help="Tags of the MetaGraph, by comma.")]


@app.command()
def serve(
    context: typer.Context,
    model_base_path: Annotated[
        Path, typer.Option("--model_base_path", help="Holds one directory for each version.")
    ],
    model_name: Annotated[
        str, typer.Option("--model_name", help="Its name in requests.")
    ] = "default",
    port: Annotated[int, typer.Option("--port", help="gRPC; 0 for none.")] = 8500,
    rest_api_port: Annotated[int, typer.Option("--rest_api_port", help="REST; 0 for none.")] = 0,
    rest_api_timeout_in_ms: Annotated[
        int, typer.Option("--rest_api_timeout_in_ms", min=1, help="For a REST request.")
    ] = 30000,
    host: Annotated[
        str, typer.Option("--host", help="Interface to listen on; 0.0.0.0 for all.")
    ] = "127.0.0.1",
    shards: Shards = 1,
    replicas: Replicas = None,
    layout: LayoutPath = None,
    memory_per_shard: Memory = None,
    cut_threshold: Threshold = DEFAULT_THRESHOLD,
    tier: TierOption = Tier.MEMORY,
    precision: PrecisionOption = Precision.AS_SAVED,
    engine: Annotated[
        Engine, typer.Option("--engine", help="ray, or all in one process without Ray.")
    ] = Engine.RAY,
    address: Annotated[
        str | None,
        typer.Option("--address", help="A Ray cluster to join; one is started if unset."),
    ] = None,
    routers: Annotated[int, typer.Option("--routers", help="Replicas of the router.")] = 1,
    serve_http_port: Annotated[
        int, typer.Option("--serve_http_port", help="Ray Serve's HTTP ingress.")
    ] = 8000,
    serve_grpc_port: Annotated[
        int, typer.Option("--serve_grpc_port", help="Ray Serve's gRPC ingress.")
    ] = 9000,
    enable_batching: Annotated[
        bool, typer.Option("--enable_batching", help="Run requests that come together as one.")
    ] = False,
    batching_parameters_file: Annotated[
        Path | None,
        typer.Option(
            "--batching_parameters_file",
            metavar="FILE",
            help="TensorFlow Serving's BatchingParameters, in text format.",
        ),
    ] = None,
    enable_per_model_batching_parameters: Annotated[
        bool,
        typer.Option(
            "--enable_per_model_batching_parameters",
            help="Read them from batching_params.pbtxt in the version directory.",
        ),
    ] = False,
    stages_file: StagesPath = None,
    saved_model_tags: Tags = "serve",
    verify_checksums: Annotated[
        bool,
        typer.Option("--verify_checksums", help="Read and check the tables' bytes before loading."),
    ] = False,
    tensorflow_intra_op_parallelism: Annotated[
        int, typer.Option("--tensorflow_intra_op_parallelism", min=0, help="0: TensorFlow chooses.")
    ] = 0,
    tensorflow_inter_op_parallelism: Annotated[
        int,
        typer.Option(
            "--tensorflow_inter_op_parallelism",
            min=-1,
            help="-1: operations one after the other, requests beside each other.",
        ),
    ] = -1,
    print_example: Annotated[
        Path | None,
        typer.Option(
            "--print_example",
            metavar="FILE",
            help="A REST request to show; assets.extra/predict_request.json if unset.",
        ),
    ] = None,
) -> None:
    """Serve the latest version of a model until Ctrl-C."""
    _refuse_beside_layout(context, layout)
    options = ServeOptions(
        models=Models((_single_model(model_name, model_base_path),)),
        defaults=ModelOptions(
            PlanOptions(
                shards,
                replicas,
                layout,
                memory_per_shard,
                cut_threshold,
                _tags(saved_model_tags),
                Storage(tier, precision),
                verify_checksums,
                BatchingOptions(
                    _batching(
                        batching_parameters_file,
                        per_model=enable_per_model_batching_parameters,
                        enabled=enable_batching,
                    ),
                    enable_per_model_batching_parameters,
                    stages_file,
                ),
            )
        ),
        doors=DoorOptions(
            host=host,
            grpc_port=port,
            rest_port=rest_api_port,
            rest_timeout=rest_api_timeout_in_ms / 1000.0,
            intra_op_threads=tensorflow_intra_op_parallelism,
            inter_op_threads=tensorflow_inter_op_parallelism,
        ),
        engine=engine,
        ray=RayOptions(address, routers, serve_http_port, serve_grpc_port),
        example=print_example,
    )
    check(options)
    _run(options, Console(stderr=True))


@app.command()
def inspect(
    directory: Directory,
    layout: LayoutPath = None,
    cut_threshold: Threshold = DEFAULT_THRESHOLD,
    stages: Annotated[
        bool,
        typer.Option("--stages", help="Show each signature's stages, and how they are batched."),
    ] = False,
    stages_file: StagesPath = None,
    enable_batching: Annotated[
        bool, typer.Option("--enable_batching", help="As `serve` is to be told.")
    ] = False,
    batching_parameters_file: Annotated[
        Path | None, typer.Option("--batching_parameters_file", metavar="FILE")
    ] = None,
    saved_model_tags: Tags = "serve",
) -> None:
    """Show a model's signatures and tables, where it is cut and why, and what stays whole."""
    found = locate(directory)
    batching = _batching(batching_parameters_file, enabled=enable_batching)
    options = PlanOptions(
        layout_file=layout,
        threshold=cut_threshold,
        tags=_tags(saved_model_tags),
        batching=BatchingOptions(batching, stages_file=stages_file),
    )
    with quiet_import():
        from shardserve.cluster.reports import draw_inspection  # noqa: PLC0415
        from shardserve.cluster.stage_reports import draw_stages  # noqa: PLC0415
        from shardserve.shards.cut.inspection import inspect_model  # noqa: PLC0415
        from shardserve.shards.cut.stage_graph import stage_graph  # noqa: PLC0415

    if stages:
        draw_stages(Console(), stage_graph(found.path, options))
    else:
        draw_inspection(Console(), inspect_model(found.path, options))


@app.command()
def plan(
    context: typer.Context,
    directory: Directory,
    shards: Shards = 1,
    replicas: Replicas = None,
    memory_per_shard: Memory = None,
    cut_threshold: Threshold = DEFAULT_THRESHOLD,
    tier: TierOption = Tier.MEMORY,
    precision: PrecisionOption = Precision.AS_SAVED,
    check_file: Annotated[
        Path | None,
        typer.Option(
            "--check",
            metavar="FILE",
            resolve_path=True,
            help="Plan nothing; say whether this layout file fits the model, and its loads.",
        ),
    ] = None,
    row_counts: Annotated[
        Path | None,
        typer.Option(
            "--row_counts",
            metavar="FILE",
            resolve_path=True,
            help="How often the rows of each table are read.",
        ),
    ] = None,
    saved_model_tags: Tags = "serve",
) -> None:
    """Write a layout file to standard output, and each shard's bytes and load beside it."""
    _refuse_beside_layout(context, check_file)
    found = locate(directory)
    options = PlanOptions(
        shards,
        replicas,
        check_file,
        memory_per_shard,
        cut_threshold,
        _tags(saved_model_tags),
        Storage(tier, precision),
    )
    with quiet_import():
        from shardserve.cluster.plan_reports import plan_checked, plan_made  # noqa: PLC0415
        from shardserve.cluster.reports import draw_check, draw_plan  # noqa: PLC0415

    if check_file is not None:
        draw_check(Console(), check_file, plan_checked(found.path, options, row_counts))
        return
    report, text = plan_made(found.path, options, row_counts)
    sys.stdout.write(text)
    draw_plan(Console(stderr=True), report)


def _refuse_beside_layout(context: typer.Context, file: Path | None) -> None:
    """A layout file says for itself what these flags say; one that is given is not ignored."""
    for flag in ("shards", "cut_threshold", "tier", "precision"):
        source = context.get_parameter_source(flag)
        if file is not None and source is not None and source.name == "COMMANDLINE":
            raise InvalidArgument(f"--{flag} is the layout's to say: {file} is used as it is")


def _run(options: ServeOptions, console: Console) -> None:
    if options.engine is Engine.LOCAL:
        with quiet_import():
            from shardserve.cluster import local_engine  # noqa: PLC0415

        local_engine.serve(options, console)
    else:
        from shardserve.cluster import ray_engine  # noqa: PLC0415 (sets Ray's environment first)

        ray_engine.serve(options, console)


def _batching(
    path: Path | None, *, per_model: bool = False, enabled: bool
) -> BatchingParameters | None:
    if path is not None and not enabled:
        raise InvalidArgument("--batching_parameters_file needs --enable_batching")
    if per_model and not enabled:
        raise InvalidArgument("--enable_per_model_batching_parameters needs --enable_batching")
    if not enabled:
        return None
    if path is None:
        return BatchingParameters(thread_pool_name="model_server_batch_threads")
    return read_batching_parameters(path)


def _bare_booleans(words: Sequence[str]) -> list[str]:
    """TensorFlow's `--flag=true` and `--flag=false` as a flag that is there, or is not."""
    bare = []
    for word in words:
        name, _, value = word.partition("=")
        if name not in BOOLEAN_FLAGS or not value:
            bare.append(word)
        elif value.lower() in ("true", "1"):
            bare.append(name)
        elif value.lower() not in ("false", "0"):
            raise InvalidArgument(f"{name} takes true or false, not {value!r}")
    return bare


def _single_model(name: str, base_path: Path) -> ModelConfig:
    check_name(name)
    return ModelConfig(name, base_path.absolute())


def _tags(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script. Exits with 1 and one line for what the user can put right."""
    words = sys.argv[1:] if arguments is None else arguments
    # What goes wrong is raised to us; the rest of TensorFlow's log says what hardware it found.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        app(_bare_booleans(words), prog_name="shardserve")
    except ServingError as error:
        sys.stderr.write(f"shardserve: {error.message}\n")
        sys.exit(1)
