"""Benchmarks, each against its baseline in the same run: one module for each subcommand of jobs/bench.py."""
