"""LeRobot datasets, version 3: what is what in them (layout), statistics, writing (export), reading (source).

Written from the format's facts, without the package lerobot, whose requirements would not fit beside ours. Its own
loader reads what is written here, and what its writer writes is read here (tests/test_lerobot.py, the slow tests).
"""
