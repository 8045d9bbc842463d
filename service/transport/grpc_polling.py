"""Have grpcio's serving thread read the sockets, in the call in which it waits for events.

The core would otherwise have threads of its own read and wake the serving thread for each message: on few cores the
wake-ups cost as much as the reading.
"""

import os

VARIABLE, CHOICE = "GRPC_EXPERIMENTS", "-event_engine_listener"


def read_on_serving_thread() -> None:
    """Choose that for this process, and for those that it starts. A GRPC_EXPERIMENTS that is set already stands.

    Call before grpcio is imported: the core reads the environment then.
    """
    os.environ.setdefault(VARIABLE, CHOICE)
