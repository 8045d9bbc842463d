"""Graphs written in other forms that compute the same. The exporter proves them, the server runs them."""
