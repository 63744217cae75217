"""An S3 on this machine: moto's server, which speaks the protocol over HTTP and keeps buckets in memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem
from upath import UPath

from vlaad_ray.configs import location

LOG = logging.getLogger("werkzeug")


class Requests(logging.Handler):
    """What the server was asked, in its own words: `GET /bucket/name HTTP/1.1`."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage().split('"')[1])


class Server:
    """Buckets are made with `bucket`; `environment` is what a process needs to find them."""

    def __init__(self, host: str, port: int):
        self.address = f"http://{host}:{port}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def bucket(self, name: str) -> UPath:
        place = location(f"s3://{name}")
        assert isinstance(place, UPath)
        if not place.fs.exists(name):
            place.fs.mkdir(name)
        return place

    @contextmanager
    def counted(self) -> Iterator[list[str]]:
        """The requests that arrive meanwhile."""
        handler = Requests()
        LOG.addHandler(handler)
        try:
            yield handler.lines
        finally:
            LOG.removeHandler(handler)


@contextmanager
def serving() -> Iterator[Server]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    LOG.addHandler(logging.NullHandler())  # else it makes itself one that prints
    found = Server(*server.get_host_and_port())
    before = {name: os.environ.get(name) for name in found.environment}
    os.environ.update(found.environment)
    S3FileSystem.clear_instance_cache()
    try:
        yield found
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        server.stop()
