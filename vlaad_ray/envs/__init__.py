"""Environments. The one interface is that of `libero.LiberoEnv`: reset, step, observe, success, close."""
