"""Instruments: a load generator, yardstick servers, the engine alone, and the table that puts them together.

`python -m streamcell.benchmarks` is `make bench`. Some parts also run alone: `on_the_wire`, `engine`, `spread`,
`triton`, `gpu`.
"""
