"""The student: a small policy that sees images and an instruction and answers with K binned actions.

model (network) · text (tokenizer) · preprocess (pixels in, actions out) · losses · checkpoint (files on disk) are all a
deployed policy needs; data (episodes to frames) and fit (epochs) are for training. None of them knows Ray or LIBERO.
"""
