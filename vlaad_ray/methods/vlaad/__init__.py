"""VLA-AD: actions with and without a description (dual path), and auxiliary heads for phase and direction."""
