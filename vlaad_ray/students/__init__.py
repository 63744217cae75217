"""The student: a policy that sees images and an instruction and answers with K binned actions.

A deployed policy needs model (what a network is), small and clip (networks), presets (which there are), text
(tokenizer), preprocess (pixels in, actions out) and checkpoint (files on disk). Training needs also data (episodes to
frames), prepare (the student that a config asks for) with backbone (CLIP's weights) and lora, learner (the student with
auxiliary heads), losses, fit (epochs) and resume. None of them knows Ray or LIBERO.
"""
