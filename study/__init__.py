"""What recurrence and depth do to gradients: measured with the project's own layers, written to docs/gradients.md."""
