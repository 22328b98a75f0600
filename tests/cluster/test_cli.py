from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shardserve.cluster.cli import main
from shardserve.cluster.ports import free_ports
from shardserve.shards.cut.planning import plan_model
from shardserve.shards.layout_file import parse_layout
from shardserve.shards.model import PlanOptions

SERVE = ("serve", "--model_name=m", "--model_base_path={model}")


def run(*arguments: str) -> int:
    """The exit status."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_the_version_needs_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == run("serve", "--version") == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("TensorFlow ModelServer: 2.21.0+shardserve.")
    assert lines[:2] == lines[2:]


def test_inspect_shows_signatures_tables_motifs_and_what_stays_whole(
    tiny_dlrm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", str(tiny_dlrm), "--cut_threshold=16KB") == 0

    text = capsys.readouterr().out
    for shown in ("serving_default", "sparse_25: int64", "table_0", "reduce_pool", "below the"):
        assert shown in text


def test_inspect_takes_a_version_directory_too(
    tiny_dlrm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", str(tiny_dlrm / "1"), "--cut_threshold=1GiB") == 0

    assert "served whole" in capsys.readouterr().out


def test_plan_writes_a_layout_that_can_be_given_back(
    tiny_dlrm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("plan", str(tiny_dlrm), "--shards=3", "--cut_threshold=16KB") == 0
    written, drawn = capsys.readouterr()

    layout = parse_layout(written, "stdout")
    assert layout.shards == 3
    assert "table_0" in layout.tables
    assert "Shards" in drawn

    (tmp_path / "layout.yaml").write_text(written)
    assert run("inspect", str(tiny_dlrm), f"--layout={tmp_path / 'layout.yaml'}") == 0


LAYOUT = """
shards: 2
tables:
  table_0: {{sharding: row_hash, shards: [0, 1]}}
  table_1: {entry}
"""


def test_a_layout_that_can_be_served_is_valid_and_its_loads_are_shown(
    tiny_dlrm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "layout.yaml"
    path.write_text(LAYOUT.format(entry="{sharding: table, shards: [0]}"))

    assert run("plan", str(tiny_dlrm), f"--check={path}") == 0

    out, err = capsys.readouterr()
    assert "layout.yaml: valid: 2 tables on 2 shards, 1 of each" in out
    for shown in ("table_1", "row_hash", "lookups a request", "1.50"):
        assert shown in out
    assert err == ""


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{sharding: table, shards: [2]}", "{path}: table 'table_1': shard 2 is not in [0, 2)"),
        ("{sharding: column, slices: [{shard: 0, columns: [0, 9]}]}", "columns [9, 16) lie on no"),
        ("{sharding: table, shards: [0], tier: cloud}", "tables.table_1.tier"),
        (
            "{sharding: table, shards: [0]}\n  table_9x: {sharding: table, shards: [0]}",
            "{path}: table 'table_9x' is not a variable",
        ),
        (
            "{sharding: table, shards: [0]}\n  table_1: {sharding: table, shards: [1]}",
            "{path}: not YAML: line 6: 'table_1' is there twice",
        ),
        ("{sharding: table, shards: [0", "{path}: not YAML: line "),
    ],
)
def test_a_layout_that_cannot_be_served_is_refused_by_the_check_as_by_the_server(
    entry: str, said: str, tiny_dlrm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "layout.yaml"
    path.write_text(LAYOUT.format(entry=entry))

    assert run("plan", str(tiny_dlrm), f"--check={path}") == 1

    out, err = capsys.readouterr()
    assert said.format(path=path) in err.replace("\n", " ")
    assert out == ""


def test_a_plan_from_row_counts_says_why_and_is_the_same_each_time(
    tiny_dlrm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "counts.yaml"
    path.write_text("tables: {table_0: {0: 900, 5: 20}, table_1: {1: 1000}}")
    words = ("plan", str(tiny_dlrm), "--shards=2", "--cut_threshold=16KB", f"--row_counts={path}")

    assert run(*words) == run(*words) == 0

    written, drawn = capsys.readouterr()
    half = len(written) // 2
    assert written[:half] == written[half:]
    assert "of the bytes read" in written
    assert "bytes read" in drawn
    layout = parse_layout(written[:half], "stdout")

    (tmp_path / "layout.yaml").write_text(written[:half])
    assert run("plan", str(tiny_dlrm), f"--check={tmp_path / 'layout.yaml'}", words[-1]) == 0
    out, _ = capsys.readouterr()
    assert f"{len(layout.tables)} tables on 2 shards" in out
    assert "bytes read" in out


def test_row_counts_of_a_table_that_does_not_exist_are_refused(
    tiny_dlrm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "counts.yaml"
    path.write_text("tables: {absent: {0: 1}}")

    assert run("plan", str(tiny_dlrm), f"--row_counts={path}") == 1

    assert "table 'absent' is not in the model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("inspect", "/absent"), 1, "model base path /absent is not a directory"),
        (("plan", "{model}", "--memory_per_shard=1KiB", "--cut_threshold=16KB"), 1, "shard 0"),
        (("plan", "{model}", "--memory_per_shard=lots"), 2, "--memory_per_shard"),
        (("plan", "{model}", "--check=/absent.yaml"), 1, "/absent.yaml"),
        (("plan", "{model}", "--row_counts=/absent.yaml"), 1, "/absent.yaml"),
        (("serve", "--model_name=m", "--model_base_path=/absent"), 1, "/absent"),
        (("serve", "--model_name=m"), 1, "--model_base_path"),
        ((*SERVE, "--layout=/absent.yaml"), 1, "/absent.yaml"),
        ((*SERVE, "--layout=/a.yaml", "--shards=2"), 1, "--shards is the layout's to say: /a.yaml"),
        (("plan", "/m", "--check=/a.yaml", "--tier=mapped"), 1, "--tier is the layout's to say"),
        ((*SERVE, "--port=0"), 1, "--port"),
        ((*SERVE, "--engine=x"), 2, "--engine"),
        ((*SERVE, "--nonsense=1"), 2, "--nonsense"),
        (
            (*SERVE, "--enable_batching", "true"),
            2,
            "unknown argument 'true': a boolean takes its value after '=': --enable_batching=true",
        ),
        (("inspect", "{model}", "--stages", "False"), 2, "False"),
        # The name of a directory.
        (("inspect", "--stages", "1"), 1, "model base path 1 is not a directory"),
        ((*SERVE, "--drain_seconds=inf"), 2, "--drain_seconds"),
        ((*SERVE, "stray"), 2, "stray"),
        (
            ("serve", "--model_name=m", "--model_base_path={model}", "--enable_batching=perhaps"),
            1,
            "--enable_batching takes true or false, not 'perhaps'",
        ),
        (
            (
                "serve",
                "--model_name=m",
                "--model_base_path={model}",
                "--enable_batching=false",
                "--batching_parameters_file=/absent",
            ),
            1,
            "--batching_parameters_file needs --enable_batching",
        ),
        (
            (*SERVE, "--enable_per_model_batching_parameters"),
            1,
            "--enable_per_model_batching_parameters needs --enable_batching",
        ),
        (("inspect", "{model}", "--stages", "--stages_file=/absent.yaml"), 1, "/absent.yaml"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_message_without_a_trace(
    arguments: tuple[str, ...],
    status: int,
    said: str,
    tiny_dlrm: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(*(word.format(model=tiny_dlrm) for word in arguments)) == status

    out, err = capsys.readouterr()
    assert said in err
    assert out == ""
    assert "Traceback" not in err


def test_inspect_shows_the_stages_and_how_they_are_batched(
    tiny_dlrm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "stages.yaml"
    path.write_text("regions: {bottom: {inputs: [dense], outputs: [concat]}}")
    flags = ("--stages", "--enable_batching", "--cut_threshold=16KB")

    assert run("inspect", str(tiny_dlrm), *flags) == 0
    out, _ = capsys.readouterr()
    assert "signature serving_default\n" in out
    assert "1. lookups in table_0, " in out
    assert "2. dense: batches of up to 1000 rows, a timeout of 0 us" in out

    assert run("inspect", str(tiny_dlrm), *flags, f"--stages_file={path}") == 1
    _, err = capsys.readouterr()
    assert "region 'bottom': the model has no tensor 'concat'; there is " in err


@pytest.mark.parametrize("said", ["--verify_checksums", "--verify_checksums=true"])
def test_a_damaged_byte_of_a_table_is_refused_where_checksums_are_asked_for(
    said: str, tiny_dlrm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(tiny_dlrm, tmp_path / "model"))
    file = model / "1" / "variables" / "variables.data-00000-of-00001"
    plan = plan_model("m", 1, model / "1", PlanOptions(threshold=16 << 10))
    damaged = bytearray(file.read_bytes())
    damaged[plan.sources["table_0"].extents[0].offset] ^= 1
    file.write_bytes(damaged)

    port = f"--port={free_ports(1)[0]}"
    serve = ("serve", "--model_name=m", f"--model_base_path={model}", "--engine=local", port)
    assert run(*serve, "--cut_threshold=16KB", said) == 1

    assert "does not match its checksum" in capsys.readouterr().err
