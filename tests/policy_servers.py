"""Servers of openpi's protocol that send what a test wants, and our client of them."""

import contextlib
import threading

import numpy as np
from websockets.sync.server import serve

from vlaad_ray.configs import RemoteConfig
from vlaad_ray.serving import protocol
from vlaad_ray.teachers.remote import RemoteTeacher
from vlaad_ray.types import Observation

METADATA = {"policy": "test", "render": "fast", "image_size": 0}
HELLO = protocol.pack(METADATA)


def client(server, execute=5, **changes):
    """`server`: its address, or something with a `url`."""
    settings = {"connect_timeout_s": 20.0, "infer_timeout_s": 20.0, **changes}
    return RemoteTeacher(RemoteConfig(url=server if isinstance(server, str) else server.url, **settings), execute)


def seen(size=32):
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Observation("go", np.zeros(8, np.float32), {"agentview": pixels, "wrist": pixels[::-1].copy()})


def actions(value):
    return protocol.pack({"actions": value})


@contextlib.contextmanager
def serving(handle, max_size=None):
    """A server that leaves each connection to `handle`; gives its address."""
    with serve(handle, "127.0.0.1", 0, compression=None, max_size=max_size) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()


def serving_bytes(*messages, first=HELLO, max_size=None):
    """A server of anything: `first` on connecting, then the messages whatever is asked; None closes."""

    def handle(connection):
        connection.send(first)
        for _, message in zip(connection, messages, strict=False):
            if message is None:
                return
            connection.send(message)

    return serving(handle, max_size)
