"""Instruments: a load generator, yardstick servers, the engine alone, and the table that puts them together.

`python -m streamcell.benchmarks` is `make bench`. Each part also runs alone: `wire`, `engine`, `idle`, `echo`.
"""
