"""Answering many clients in batches, and the protocol they speak. No Ray."""
