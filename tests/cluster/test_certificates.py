"""Certificates that are renewed under a server that is up."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shardserve.cluster import certificates
from shardserve.cluster.certificates import CertificateFile, read_certificates
from shardserve.cluster.local_engine import LocalServer
from shardserve.cluster.options import DoorOptions, Engine, Models, ServeOptions
from shardserve.cluster.ports import free_ports
from shardserve.router.tls import Tls
from tests.cluster.conftest import ssl_config_text
from tests.cluster.probes import probed
from tests.router.certificates import Authority


def write(path: Path, tls: Tls, more: str = "") -> CertificateFile:
    """The file as it is at a start."""
    path.write_text(ssl_config_text(tls.server_key, tls.server_cert, more))
    return CertificateFile(path, read_certificates(path))


def test_a_file_is_renewed_when_it_says_something_else(tmp_path: Path) -> None:
    path = tmp_path / "ssl.config"
    first, second = Authority().server(), Authority().server()
    file = write(path, first)
    assert not file.is_renewed()
    assert file.latest == first

    write(path, second)

    assert file.is_renewed()
    assert file.latest == second
    assert not file.is_renewed()


def test_a_file_that_is_broken_is_said_once_and_leaves_the_certificates_before_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ssl.config"
    first, second = Authority().server(), Authority().server()
    file = write(path, first)
    broken = {
        "not the key of": ssl_config_text(second.server_key, first.server_cert),
        "Error parsing": path.read_text()[:700],
        "client_verify": ssl_config_text(first.server_key, first.server_cert, "")
        + f" client_verify: true custom_ca: {second.server_cert.decode()!r}",
    }
    for said, text in broken.items():
        path.write_text(text)
        caplog.clear()
        assert not file.is_renewed()
        assert not file.is_renewed()
        (record,) = caplog.records
        assert said in record.getMessage()
        assert "those before stay" in record.getMessage()
        assert "BEGIN" not in record.getMessage()
        assert file.latest == first

    path.unlink()
    assert not file.is_renewed()
    write(path, second)
    assert file.is_renewed()


async def test_the_local_engine_shows_what_its_file_says_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "LOOK_SECONDS", 0.01)
    path, (port,) = tmp_path / "ssl.config", free_ports(1)
    first, second = Authority(), Authority()
    tls = first.server()
    write(path, tls)
    doors = DoorOptions(grpc_port=0, rest_port=port, tls=tls, tls_file=path)
    options = ServeOptions(Models(()), doors=doors, engine=Engine.LOCAL)
    server = LocalServer(options, lambda _: None)
    try:
        async with asyncio.timeout(40.0):
            await server.start()
            await server.open()
            assert await probed(port, first, tmp_path) == 200
            write(path, second.server())
            while await probed(port, second, tmp_path) is None:
                pass
            assert await probed(port, first, tmp_path) is None
    finally:
        await server.close()
