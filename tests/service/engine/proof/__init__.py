"""The proof of a model when it is loaded."""
