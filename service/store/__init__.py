"""Sessions in a shared store: they outlive their machine, and move between replicas."""
