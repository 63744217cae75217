"""A CLIP of some thousand parameters, written by transformers itself in the format of the published checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import synthetic
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

WORDS = [*synthetic.INSTRUCTIONS, "approaching, moving left", "grasping, moving right"]


def write(directory: Path, positions: int = 77, seed: int = 0) -> CLIPModel:
    """Towers of two layers that see 32 pixels in patches of 16; a tokenizer with CLIP's marks and word ends."""
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(directory)
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 16}
    text = {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": positions, **tower}
    text |= {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id}
    text |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    vision = {"hidden_size": 48, "intermediate_size": 96, "image_size": 32, "patch_size": 16, **tower}
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # as random as trained weights, biases and norms too
    model.save_pretrained(directory)
    return model


def _tokenizer() -> CLIPTokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    plain.train_from_iterator([word for text in WORDS for word in text.replace(",", " ,").split()], trainer)
    vocabulary = list(dict.fromkeys([*alphabet, *(letter + "</w>" for letter in alphabet), *plain.get_vocab()]))
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    merges = [tuple(merge) for merge in json.loads(plain.to_str())["model"]["merges"]]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(vocabulary)}, merges=merges)
