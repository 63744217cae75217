"""What is going on in an episode, from numbers alone: phases, directions of motion, smoothness."""
