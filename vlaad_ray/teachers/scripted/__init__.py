"""The scripted privileged expert: plans from the simulator's true state, acts through the 7-D interface of a VLA.

geometry -> motion -> grasping, placing, articulated, doors, cavity, shelf -> expert; each imports only those before it.
"""
