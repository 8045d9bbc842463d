"""Hostile messages beside honest clients: what the tests and `make fuzz` share."""
