"""A tokenizer.json of Hugging Face's, a student's or OpenVLA's."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from vlaad_ray.configs import UserError


def read_tokenizer(path: Path, absent: str) -> Tokenizer:
    """Raises UserError for a file that is no tokenizer; `absent`: what it says to do where there is none."""
    if not path.is_file():
        raise UserError(f"{path} is missing; {absent}")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower one for a malformed file
        raise UserError(
            f"{path} is not a tokenizer ({str(error).splitlines()[0]}); copy the checkpoint again"
        ) from None
