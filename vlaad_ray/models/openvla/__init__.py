"""OpenVLA (arXiv 2406.09246) run natively: no remote code, no TensorFlow.

`teachers.openvla.load_openvla` is the way in.

Behaviour follows the authors' public code (github.com/openvla/openvla: prismatic/extern/hf and experiments/robot).
"""
