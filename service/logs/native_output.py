"""Keep grpc's core from printing for each client that does something odd, such as a TLS handshake that fails.

It prints on standard error from C++, past the log's limits, so a client could fill a disk. It reads the variable
when grpcio is imported; one that is set already stands.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
