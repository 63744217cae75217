"""The student: a policy that sees images and an instruction and answers with K binned actions.

model says what a network is; small and clip are networks, presets says which there are; text is the tokenizer,
preprocess turns pixels into inputs and logits into actions, checkpoint is files on disk. backbone (CLIP's weights) and
lora are for training. None of them knows Ray or LIBERO.
"""
