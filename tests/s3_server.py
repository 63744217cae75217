"""An S3 on this machine: moto's, which speaks the protocol over HTTP and keeps buckets in memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from s3fs import S3FileSystem
from upath import UPath
from werkzeug.serving import WSGIRequestHandler, make_server

from vlaad_ray.configs import location

REQUESTS: list[str] = []
"""What servers of this process were asked, such as `GET /bucket/name`."""


class Handler(WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Keeps what werkzeug would print."""
        REQUESTS.append(f"{self.command} {self.path}")


class Server:
    """Buckets are made with `bucket`; `environment` is what a process needs to find them."""

    def __init__(self, port: int):
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
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
        """The requests that arrive within the block: of nobody else's, if nobody else asks."""
        before = len(REQUESTS)
        asked: list[str] = []
        yield asked
        asked += REQUESTS[before:]


@contextmanager
def serving() -> Iterator[Server]:
    application = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    found = Server(server.server_port)
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
        server.shutdown()
        thread.join()
