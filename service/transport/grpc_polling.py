"""Makes grpcio's serving thread read the sockets itself, in the call that waits for events.

Otherwise the core's own threads read the sockets and wake the serving thread for each message: on few cores the
wake-ups cost as much as the reading.
"""

import os

VARIABLE, CHOICE = "GRPC_EXPERIMENTS", "-event_engine_listener"


def read_on_serving_thread() -> None:
    """Select this for the process and those it starts. A GRPC_EXPERIMENTS that is already set is kept.

    Call before grpcio is imported: the core reads the environment then.
    """
    os.environ.setdefault(VARIABLE, CHOICE)
