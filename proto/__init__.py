"""The wire contract: `pb` holds StreamCell's messages, `rpc` its gRPC stubs and servicer base."""

from .streamcell.v1 import streamcell_pb2 as pb
from .streamcell.v1 import streamcell_pb2_grpc as rpc

__all__ = ["pb", "rpc"]
