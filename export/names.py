"""The names of a graph's inputs, outputs and axes."""

X, Y, LENGTHS = "x", "y", "lengths"
BATCH, TIME = "batch", "time"
