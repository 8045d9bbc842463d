"""Calls that have ended leave nothing for the garbage collector: what it alone can free stays long on a busy server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# In a process of its own: whatever else this one has made would count as well.
_COUNT = """
import collections, gc, secrets, sys, threading, time
import grpc
from streamcell.proto import pb, rpc
from streamcell.service import Settings, make_server

server = make_server(
    Settings.load(
        models=sys.argv[1], lane=sys.argv[2], port=0, metrics_port=0, log_level="error", linger_s=1.0
    )
)
server.start()

def drop(count):
    with grpc.insecure_channel(f"127.0.0.1:{server.port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = rpc.StreamCellStub(channel)
        calls = []
        for _ in range(count):
            over = threading.Event()
            def feed(over=over, opened=len(calls) % 2):
                if opened:
                    yield pb.StreamRequest(open=pb.OpenSession(model="lstm"), inputs=[bytes(12)])
                else:  # one that outlives its call, for a while
                    session, token = secrets.token_bytes(16), secrets.token_bytes(32)
                    yield pb.StreamRequest(
                        open=pb.OpenSession(model="lstm", session=session, token=token, window=4, attempt=1)
                    )
                over.wait(60)
            calls.append((stub.Stream(feed()), over))
        for call, _ in calls:
            next(call)
        time.sleep(1.5)  # every connection has been looked at with its calls alive: see in_flight.py
        for call, over in calls:
            call.cancel()
            over.set()
    while len(server.host.sessions):
        time.sleep(0.01)
    time.sleep(2.5)  # and without them

drop(50)
gc.collect()
gc.disable()
gc.set_debug(gc.DEBUG_SAVEALL)
drop(200)
gc.collect()
ours = collections.Counter(type(each).__name__ for each in gc.garbage if type(each).__module__.startswith("streamcell"))
print("cycles of", dict(ours))
server.stop()
"""


@pytest.mark.parametrize("lane", ["fast", "threaded"])
def test_calls_that_have_ended_leave_no_cycles(lane: str, models_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _COUNT, models_dir, lane], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "cycles of {}" in done.stdout.splitlines(), done.stdout
