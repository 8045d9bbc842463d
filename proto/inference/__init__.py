"""The Open Inference Protocol: `oip` holds its messages, in a descriptor pool of their own, `rpc` its gRPC stubs.

Not imported by `streamcell.proto`: only the server needs it.
"""

from . import inference_pb2 as oip
from . import inference_pb2_grpc as rpc

__all__ = ["oip", "rpc"]
