"""A place that a user names: a path on this machine or a mount of it, or a URI in an object store."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import posixpath
import re
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from upath import UPath

from vlaad_ray.configs.bounds import elsewhere, hints
from vlaad_ray.configs.errors import UserError, with_packages

SCHEMES: dict[str, str] = {
    "s3": "vlaad-ray[s3]",
    "gs": "gcsfs",
    "az": "adlfs",
    "hf": "huggingface_hub",
    "memory": "fsspec",
}
"""Scheme of a URI -> what to install for it. Only stores in which an object appears whole or not at all."""
SPELLINGS = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "local": "file"}
OPTIONS: dict[str, Any] = {"use_listings_cache": False}
"""For every store: others write, too, so what was listed before says nothing of now."""
S3_OPTIONS: dict[str, Any] = {"config_kwargs": {"max_pool_connections": 32, "retries": {"mode": "standard"}}}
"""For requests in parallel; and three tries each, by its client, before s3fs tries again itself."""


def location(text: str) -> Path | UPath:
    """What a user typed -> a Path, or for a URI a UPath, which has pathlib's methods.

    A URI is written in one way whoever writes it: without a slash at its end (but for a bare bucket's), empty or dotted
    parts. `file://` is a Path. Raises UserError for a scheme that is none of SCHEMES, and where its package is missing.
    """
    scheme, colon, rest = text.partition(":")
    if not colon or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+-]+", scheme) or not rest.startswith("/"):
        return Path(text)
    scheme = SPELLINGS.get(scheme.lower(), scheme.lower())
    if not rest.startswith("//"):  # what pathlib makes of a URI, or a folder that is called so
        if scheme not in (*SCHEMES, "file"):
            return Path(text)
        raise UserError(
            f"{text}: a URI has two slashes, as {scheme}://{rest.lstrip('/')}; a folder is written ./{text}"
        )
    bucket, _, key = rest[2:].partition("/")
    if scheme == "file":
        if bucket not in ("", "localhost"):
            raise UserError(f"{text} is on the host {bucket}; write file:///path for a path on this one")
        return Path("/" + urllib.parse.unquote(key))
    if scheme not in SCHEMES:
        raise UserError(f"{text}: nothing is known of {scheme}://; use a path, or one of {', '.join(SCHEMES)} and file")
    key = posixpath.normpath("/" + key).lstrip("/")
    if not bucket:
        raise UserError(f"{text} names no bucket; write {scheme}://BUCKET/FOLDER")
    _check_installed(scheme, text)
    options = OPTIONS | (S3_OPTIONS if scheme == "s3" else {})
    return UPath(f"{scheme}://{bucket}/{key}".rstrip("/"), **options)


@functools.cache
def _check_installed(scheme: str, text: str) -> None:
    from fsspec.registry import known_implementations

    module = known_implementations[scheme]["class"].rpartition(".")[0]
    with_packages(lambda: importlib.import_module(module), text, SCHEMES[scheme])


def places_of(config: Any, hidden: Sequence[str] = ()) -> Iterator[tuple[str, Path | UPath]]:
    """(field, place) of a config and of those nested in it, but for the fields that a job sets itself (`hidden`)."""
    config_type: Any = type(config)
    for name, hint in hints(config_type).items():
        value = getattr(config, name)
        if name in hidden:
            continue
        if isinstance(value, Path | UPath):
            yield name, value
        elif isinstance(value, tuple):
            places = [each for each in value if isinstance(each, Path | UPath)]
            yield from ((f"{name} {number}", place) for number, place in enumerate(places, start=1))
        elif dataclasses.is_dataclass(value):
            yield from places_of(value, elsewhere(hint))


Location = Annotated[
    Path | UPath,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH|URI",
        instance_from_str=lambda words: location(words[0]),
        is_instance=lambda value: isinstance(value, Path | UPath),
        str_from_instance=lambda value: [str(value)],
    ),
]
"""The type of a config's field, and of whatever takes either."""
