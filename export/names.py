"""What the tensors and axes at a graph's border are called."""

X, Y, LENGTHS = "x", "y", "lengths"
BATCH, TIME = "batch", "time"
