"""A policy acts in environments: the one loop, and many of them over Ray actors and policy replicas."""
