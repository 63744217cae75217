"""Who may ask a policy server: openpi's API key, and addresses that need one."""

from __future__ import annotations

import hmac
import ipaddress
import os
import socket
from collections.abc import Sequence

from vlaad_ray.configs import ServerConfig, UserError

VARIABLE = "VLAAD_TOKEN"
SCHEME = "Api-Key "
"""openpi-client sends `Authorization: Api-Key KEY` when it is given an api_key."""
CHALLENGE = {"WWW-Authenticate": SCHEME.strip()}
REFUSED = "the token is missing or wrong\n"
"""With HTTP status 401 and the header of CHALLENGE, what a client without it is told."""
MIN_LENGTH = 16
MAKE_ONE = "python -c 'import secrets; print(secrets.token_urlsafe(32))'"


def read_token(config: ServerConfig) -> str | None:
    """The token that clients must present; None: anybody may ask, who can only be on this machine unless allowed.

    From a file or the environment: arguments of a process can be read by everybody on its machine. Raises UserError.
    """
    if config.token_file is not None:
        if not config.token_file.is_file():
            raise UserError(f"--token-file: {config.token_file} does not exist; make a token: {MAKE_ONE}")
        token, where = config.token_file.read_text().strip(), str(config.token_file)
    elif VARIABLE in os.environ:
        token, where = os.environ[VARIABLE].strip(), VARIABLE
    elif config.allow_no_token or is_loopback(config.host):
        return None
    else:
        raise UserError(
            f"--host {config.host} lets other machines in: give a token in {VARIABLE} or --token-file (make one: "
            f"{MAKE_ONE}), or say --allow-no-token"
        )
    if len(token) < MIN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"{where}: a token is {MIN_LENGTH} or more letters, digits and signs, without spaces; make one: {MAKE_ONE}"
        )
    return token


def may_enter(authorization: Sequence[str], token: str | None) -> bool:
    """Whether a request may proceed, given all its Authorization headers. Takes as long for any wrong token."""
    if token is None:
        return True
    given = authorization[0] if len(authorization) == 1 else ""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), (SCHEME + token).encode())


def resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Family and address to listen on. Raises UserError for a name that is none of this machine's."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UserError(f"--host: {host!r} is no address ({error.strerror}); use 127.0.0.1 or 0.0.0.0") from None
    return family, (str(address[0]), int(address[1]))


def is_loopback(host: str) -> bool:
    """Whether only this machine itself can reach a server on `host`."""
    return ipaddress.ip_address(resolve(host, 0)[1][0]).is_loopback
