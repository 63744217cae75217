"""What cameras are called here and elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from vlaad_ray.configs import UserError
from vlaad_ray.types import CAMERAS


def renamed(wishes: Sequence[str], usual: Mapping[str, str], short: Mapping[str, str]) -> dict[str, str]:
    """Source's key of a camera -> its name here.

    `wishes`: OLD=NEW, as --cameras has them. `usual`: key -> name without a wish. `short`: key -> what a user may call
    it. Raises UserError for a wish about no camera, and for two cameras of one name.
    """
    names = dict(usual)
    for wish in wishes:
        old, equals, new = wish.partition("=")
        keys = [key for key in usual if old in (key, short[key])]
        if not equals or not new or not keys:
            raise UserError(f"--cameras {wish}: write OLD=NEW, OLD being one of {', '.join(short.values())}")
        names[keys[0]] = new
    if len(set(names.values())) < len(names):
        raise UserError(f"--cameras: two cameras would have one name: {', '.join(names.values())}")
    return names


def in_order(cameras: Iterable[str]) -> tuple[str, ...]:
    """LIBERO's first, in the order that an Embodiment of its arm has them; the others by name."""
    return tuple(sorted(cameras, key=lambda name: (CAMERAS.index(name) if name in CAMERAS else len(CAMERAS), name)))
