"""`python -m streamcell.service.processes.frontend FD`: the supervisor starts it and holds the socket FD."""

from streamcell.service.gc_tuning import spare_imports
from streamcell.service.transport.grpc_polling import read_on_serving_thread

if __name__ == "__main__":
    spare_imports()
    read_on_serving_thread()  # before grpcio is imported
    from streamcell.service.processes.child_process import run

    from .main import FrontendProcess

    run(FrontendProcess)
