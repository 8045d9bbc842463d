"""Stops grpc's core from printing a line for each client's mistake, such as a TLS handshake that fails.

It prints on standard error from C++ and bypasses the log's limits, so a client could fill a disk. It reads the variable
when grpcio is imported. A value from the environment is kept.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
