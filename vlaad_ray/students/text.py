"""Instruction and description as tokens: a byte-level BPE trained on the data's own text.

Byte-level, so that any instruction of a user encodes without an unknown token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from vlaad_ray.configs import UserError

PAD, START = 0, 1
MAX_VOCABULARY = 1024


class TextTokenizer:
    """text -> [length] int64 token ids: START, then the text, then PAD up to `length`; longer texts are cut."""

    def __init__(self, tokenizer: Tokenizer, length: int) -> None:
        self._tokenizer = tokenizer
        self.length = length

    @property
    def vocabulary(self) -> int:
        return self._tokenizer.get_vocab_size()

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """B texts -> [B, length] int64."""
        tokens = np.full((len(texts), self.length), PAD, np.int64)
        for row, encoding in zip(tokens, self._tokenizer.encode_batch(list(texts)), strict=True):
            ids = [START, *encoding.ids][: self.length]
            row[: len(ids)] = ids
        return tokens

    def save(self, path: Path) -> None:
        self._tokenizer.save(str(path))


def train_tokenizer(texts: Iterable[str], length: int) -> TextTokenizer:
    """Learn merges from the distinct `texts`. Deterministic: the order of the texts doesn't matter."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY,
        special_tokens=["[PAD]", "[START]"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(set(texts)), trainer)
    return TextTokenizer(tokenizer, length)


def load_tokenizer(path: Path, length: int) -> TextTokenizer:
    if not path.is_file():
        raise UserError(f"{path} is missing; a checkpoint directory needs it: copy the whole directory")
    try:
        return TextTokenizer(Tokenizer.from_file(str(path)), length)
    except Exception as error:  # the library raises bare Exception for any malformed file
        raise UserError(
            f"{path} is not a tokenizer ({str(error).splitlines()[0]}); copy the checkpoint again"
        ) from None
