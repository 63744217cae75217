"""What identifies a file: SHA-256 over it, or over parts of one that is too large to read in full."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from vlaad_ray.configs import Location
from vlaad_ray.files.remote import asking, opened

CHUNK = 2**24
"""Bytes read at once: never a whole checkpoint in memory."""


@dataclass(frozen=True)
class Part:
    """`length` bytes of a file from `start` on, or as many as there are."""

    place: Location
    start: int
    length: int


def sha256(*pieces: bytes | Location | Part) -> str:
    """64 hex digits over the pieces one after the other; a Location stands for all its bytes."""
    digest = hashlib.sha256()
    for piece in pieces:
        if isinstance(piece, bytes):
            digest.update(piece)
            continue
        place = piece.place if isinstance(piece, Part) else piece
        with asking(place), opened(place) as file:
            if isinstance(piece, Part):
                file.seek(piece.start)
                digest.update(file.read(piece.length))
                continue
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
