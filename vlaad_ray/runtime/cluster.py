"""Joining a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import logging
import os
import random
import re
import secrets
import socket
from contextlib import ExitStack, suppress
from typing import Any, TypeVar

import grpc
import ray
from ray._private.services import canonicalize_bootstrap_address
from ray.exceptions import RayActorError, RayTaskError

from vlaad_ray.configs import UserError
from vlaad_ray.files.private import home, writable

DASHBOARD_PORTS = range(8265, 9265)
"""From Ray's own choice on; one of them by chance, since jobs that start together would find the same one free."""
ANSWER_S = 5.0
"""Longest that a cluster may take to answer at all. Ray itself tries for over a minute."""
ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""A call that Ray's control service (GCS) has, and no other that speaks its protocol."""
Result = TypeVar("Result")
SUBMIT = "submit the job instead: ray job submit --working-dir . -- python jobs/…"


def connect(ray_data: bool = False, **options: Any) -> None:
    """Join the cluster that RAY_ADDRESS names, as it does in a submitted job, else start Ray here.

    A second call does nothing. `ray_data`: the caller drives Ray Data. `options` are ray.init's, for a Ray that is
    started here. Raises UserError for an address where no such cluster is.
    """
    address = os.environ.get("RAY_ADDRESS") or "local"
    if ray_data and address.startswith("ray://"):
        raise UserError(f"RAY_ADDRESS={address}: Ray Data does not run through Ray Client; {SUBMIT}")
    # Warns that Ray Data's bars are off: ours show instead.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Says at every start that a local Ray guards itself with a token, which is as it should be.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    # What processes of the cluster print, mostly libraries, stays in Ray's logs; what ends them comes as an exception.
    shown: dict[str, Any] = {
        "logging_level": logging.WARNING,
        "log_to_driver": os.environ.get("RAY_LOG_TO_DRIVER") == "1",
    }
    if address != "local":
        check_address(address)
        try:
            ray.init(address=address, **shown)
        except (ConnectionError, RuntimeError) as error:  # another version of Ray or Python, another token
            hint = "; its token may be another (RAY_AUTH_TOKEN_PATH)" if "RAY_AUTH_MODE" in os.environ else ""
            raise UserError(f"RAY_ADDRESS={address}: {' '.join(str(error).split())}{hint}") from error
        return
    _give_token()
    # Ray Train asks for the state of its actors at the Ray that was last started with `ray start` on this machine,
    # running or not, and takes what that does not know for dead: tell our own Ray's processes where its dashboard is.
    port = free_port(DASHBOARD_PORTS)
    with ExitStack() as after:
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
        after.callback(os.environ.pop, "RAY_API_SERVER_ADDRESS")  # a job of this process may be for another Ray
        ray.init(address=address, dashboard_port=port, **{**shown, **options})


def _give_token() -> None:
    """A Ray that is started here guards itself with a token in ~/.ray. Where it could not keep one, here is one."""
    given = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    folder = home() / ".ray"
    if not given and not (folder / "auth_token").exists() and not writable(folder):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def check_address(address: str) -> None:
    """Raises UserError unless something that may be a Ray cluster answers there, within seconds.

    `address`: auto, HOST:PORT of a head (GCS), or ray://HOST:PORT of its Ray Client.
    """
    what = f"RAY_ADDRESS={address}"
    scheme, separator, place = address.rpartition("://")
    if scheme in ("http", "https"):
        raise UserError(
            f"{what} is a dashboard, which takes submitted jobs only: ray job submit --working-dir . -- python jobs/…; "
            "to run this job on a node of the cluster itself, set RAY_ADDRESS=auto there"
        )
    if separator and scheme != "ray":
        raise UserError(f"{what}: {scheme}:// is none of Ray's; give auto, HOST:6379, ray://HOST:10001, or unset it")
    if address == "auto":
        try:
            place = canonicalize_bootstrap_address(address) or ""
        except ConnectionError:
            raise UserError(
                f"{what}: no Ray runs on this machine; start it (ray start), or unset RAY_ADDRESS"
            ) from None
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"{what} is no address; give auto, HOST:6379, ray://HOST:10001, or unset it to start Ray here")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"{what}: nothing answers at {place} ({error}); check it, or unset it to start Ray here"
        ) from None
    if separator or os.environ.get("RAY_USE_TLS"):
        return
    answer = _answer(place)
    if answer in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        raise UserError(f"{what}: what answers there is no head of a Ray cluster; that listens at 6379 by default")
    if answer is grpc.StatusCode.UNAUTHENTICATED and os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        raise UserError(
            f"{what}: this cluster asks for a token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH unless the token "
            "is in ~/.ray/auth_token"
        )


def _answer(place: str) -> grpc.StatusCode:
    """What Ray's control service, if that is what listens there, says to being asked without a token."""
    with grpc.insecure_channel(place) as channel:
        return channel.unary_unary(ALIVE).future(b"", timeout=ANSWER_S).code()


def free_port(ports: range) -> int:
    """One of `ports` by chance that nobody listens on. Raises OSError when all are taken."""
    for port in random.sample(ports, len(ports)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):  # taken, if only by somebody who does not listen yet
                probe.bind(("127.0.0.1", port))
                return port
    raise OSError(f"ports {ports[0]} to {ports[-1]} are all taken; Ray's dashboard needs one")


def get(reference: ray.ObjectRef[Result]) -> Result:
    """What a task or an actor's method returns. What it raises is raised as it was, not as a page of Ray's on it."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise cause(error) from error


def cause(error: BaseException) -> BaseException:
    """What the user's code has raised, without Ray's wrappings, one for each task that it passed through."""
    while isinstance(error, RayTaskError):
        error = error.cause
    return error


def cause_of_death(error: RayActorError) -> str:
    """Ray's pages on how a process may have died, in one line."""
    text = str(error)
    why = "memory ran out on its node" if "running low on memory" in text else text.splitlines()[0].rstrip(".")
    process = re.search(r"pid: (\d+)", text), re.search(r"ip: (\S+)", text)
    who = " on ".join(found[1] for found in process if found)
    return f"{why} (process {who}; its log is in Ray's session directory there)" if who else why
