"""A Qwen2.5-VL checkpoint with random weights, in the true architecture and file format, made without any download.

For tests, and for measuring an engine where no weights can be had: python -m vlaad_ray.annotate.random_checkpoint DIR
writes a tiny one.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from vlaad_ray.annotate import prompts

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] in ('image', 'image_url', 'image_pil') %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PATCH, MERGE = 14, 2
VOCABULARY = 1200


@dataclass(frozen=True)
class Size:
    """Widths and depths, of the language model and of the vision tower. The defaults are tiny."""

    width: int = 128
    depth: int = 2
    vision_width: int = 64
    vision_depth: int = 2
    head: int = 64
    """Channels of an attention head."""
    key_value_heads: int = 1
    mlp: int | None = None
    """None, here and below: twice the width."""
    vision_head: int = 32
    vision_mlp: int | None = None
    full_attention: tuple[int, ...] = (-1,)
    """Layers of the vision tower that look at the whole picture, not at windows of it."""
    vocabulary: int = 0
    """Rows of the embedding, at least; the tokenizer has no more than VOCABULARY tokens."""
    tied: bool = False
    """Whether the embedding is the output layer, too."""


QWEN_3B = Size(
    width=2048,
    depth=36,
    vision_width=1280,
    vision_depth=32,
    head=128,
    key_value_heads=2,
    mlp=11008,
    vision_head=80,
    vision_mlp=3420,
    full_attention=(7, 15, 23, 31),
    vocabulary=151936,
    tied=True,
)
"""Qwen2.5-VL-3B, as its config.json says: 3.75 G parameters, 7.5 GB in bf16."""


def make_config(size: Size, tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    eighth = size.head // 8
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": -(-max(len(tokenizer), size.vocabulary) // 64) * 64,
            "hidden_size": size.width,
            "intermediate_size": size.mlp or 2 * size.width,
            "num_hidden_layers": size.depth,
            "num_attention_heads": size.width // size.head,
            "num_key_value_heads": size.key_value_heads,
            "max_position_embeddings": 8192,
            "max_window_layers": size.depth,
            "use_sliding_window": False,
            "rope_theta": 1e6,
            "rope_scaling": {"type": "mrope", "mrope_section": [eighth, eighth * 3 // 2, eighth * 3 // 2]},
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "tie_word_embeddings": size.tied,
        },
        vision_config={
            "depth": size.vision_depth,
            "hidden_size": size.vision_width,
            "intermediate_size": size.vision_mlp or 2 * size.vision_width,
            "num_heads": size.vision_width // size.vision_head,
            "out_hidden_size": size.width,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [layer % size.vision_depth for layer in size.full_attention],
            "tokens_per_second": 2,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=size.tied,
    )


def write_checkpoint(directory: Path, size: Size | None = None, seed: int = 0, device: str = "cpu") -> Path:
    """Write config, tokenizer, processor and weights; returns the directory. `device`: draws the weights."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(directory)
    config = make_config(size or Size(), tokenizer)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    torch.manual_seed(seed)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16).eval()
    model.generation_config = GenerationConfig(
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        pad_token_id=ids["<|endoftext|>"],
        do_sample=False,
    )
    model.save_pretrained(directory)
    images = {
        "min_pixels": (4 * PATCH) ** 2,
        "max_pixels": 1280 * (PATCH * MERGE) ** 2,
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "processor_class": "Qwen2_5_VLProcessor",
    }
    for name, kind in (("preprocessor", "image"), ("video_preprocessor", "video")):
        content = {**images, f"{kind}_processor_type": f"Qwen2VL{kind.capitalize()}Processor"}
        (directory / f"{name}_config.json").write_text(json.dumps(content, indent=1))
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return directory


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, as Qwen's, trained on the prompts' own words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    tokenizer.train_from_iterator(json.dumps(prompts.texts()).split("\\n"), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[token for token in SPECIAL if token not in ("<|endoftext|>", "<|im_end|>")],
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


if __name__ == "__main__":
    print(write_checkpoint(Path(sys.argv[1])))
