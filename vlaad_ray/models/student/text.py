"""Instruction and description as tokens: with CLIP's own tokenizer, or a byte-level BPE trained on the data's text.

Byte-level, so that any instruction of a user encodes without an unknown token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from vlaad_ray.configs import UserError
from vlaad_ray.models.tokenizer import read_tokenizer

PAD, START = 0, 1
MAX_VOCABULARY = 1024


@dataclass(frozen=True)
class Marks:
    """The tokens around a text, by name. Without `end` it just stops where the padding begins."""

    pad: str
    start: str
    end: str | None


SMALL_MARKS = Marks(pad="[PAD]", start="[START]", end=None)
CLIP_MARKS = Marks(pad="<|endoftext|>", start="<|startoftext|>", end="<|endoftext|>")
"""Attention in CLIP's text tower is causal and its first end token is read: what pads the rest doesn't matter."""


class TextTokenizer:
    """text -> [length] int64 token ids: start, the text, end if there is one, padding; longer texts are cut."""

    def __init__(self, tokenizer: Tokenizer, length: int, marks: Marks = SMALL_MARKS) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self.length = length
        self._pad, self._start = _id(tokenizer, marks.pad), _id(tokenizer, marks.start)
        self.end = None if marks.end is None else _id(tokenizer, marks.end)
        """Id of the token that ends a text, where there is one."""

    @property
    def vocabulary(self) -> int:
        return self._tokenizer.get_vocab_size()

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """B texts -> [B, length] int64."""
        tokens = np.full((len(texts), self.length), self._pad, np.int64)
        end = [] if self.end is None else [self.end]
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        for row, encoding in zip(tokens, encodings, strict=True):
            ids = [self._start, *encoding.ids][: self.length - len(end)] + end
            row[: len(ids)] = ids
        return tokens

    def save(self, path: Path) -> None:
        self._tokenizer.save(str(path))


def train_tokenizer(texts: Iterable[str], length: int, marks: Marks = SMALL_MARKS) -> TextTokenizer:
    """Learn merges from the distinct `texts`. Deterministic: the order of the texts doesn't matter."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY,
        special_tokens=[marks.pad, marks.start],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(set(texts)), trainer)
    return TextTokenizer(tokenizer, length, marks)


def load_tokenizer(path: Path, length: int) -> TextTokenizer:
    tokenizer = read_tokenizer(path, "a checkpoint directory needs it: copy the whole directory")
    for marks in (SMALL_MARKS, CLIP_MARKS):
        if tokenizer.token_to_id(marks.start) is not None and tokenizer.token_to_id(marks.pad) is not None:
            return TextTokenizer(tokenizer, length, marks)
    raise UserError(f"{path} has neither CLIP's <|startoftext|> and <|endoftext|> nor a student's own marks")


def _id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    assert found is not None, token
    return int(found)
