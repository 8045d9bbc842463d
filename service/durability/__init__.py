"""Sessions in mapped files: what survives the death of the server's processes."""
