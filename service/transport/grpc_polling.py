"""Have grpcio's serving thread read the sockets, in the call in which it waits for events.

The core would have threads of its own read and wake the serving thread for each message: on few cores the wake-ups
cost as much as the reading. The core reads its choice from the environment when grpcio is imported, so importing
this module first is what counts. A GRPC_EXPERIMENTS that is set already stands.
"""

import os

VARIABLE, CHOICE = "GRPC_EXPERIMENTS", "-event_engine_listener"

os.environ.setdefault(VARIABLE, CHOICE)
