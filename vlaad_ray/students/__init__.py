"""The student: a policy that sees images and an instruction and answers with K binned actions.

A deployed policy needs model (what a network is), small and clip (networks), presets (which there are), text
(tokenizer), preprocess (pixels in, actions out) and checkpoint (files on disk). For training there are data (episodes
to frames), backbone (CLIP's weights), lora, learner (the student with auxiliary heads), losses and fit (epochs). None of
them knows Ray or LIBERO.
"""
