"""The garbage collector does not hold up calls, and still finds what is garbage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from streamcell.benchmarks.load.spec import Load
from streamcell.benchmarks.targets.processes import Generator
from streamcell.client.local_server import ServerProcess

SCRIPT = """
import gc, weakref
from streamcell.service import gc_tuning as garbage

class Node:
    pass

def cycle():
    node = Node()
    node.me = node
    return node, weakref.ref(node)

node, ref = cycle()
garbage.refreeze_heap()
assert not gc.get_freeze_count(), "nothing was settled before"
young = gc.get_threshold()[0]
garbage.tune_gc()
assert gc.get_freeze_count() > 1000 and gc.get_threshold()[0] > young

del node
gc.collect()
assert ref() is not None, "a full collection walks what was alive when it was calmed"
garbage.refreeze_heap()
assert ref() is None, "what was alive then and is garbage now was not collected"

node, ref = cycle()
del node
gc.collect()
assert ref() is None, "what came later is not collected"
"""


def test_what_is_alive_is_left_out_until_it_is_looked_at_again() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unary_calls_make_no_full_collections(models_dir: Path) -> None:
    with ServerProcess(models_dir) as server, Generator() as generator:
        # What a start imports is no garbage: with Python's own threshold it looks 220 times.
        assert server.metric("python_gc_collections_total", generation="0") < 120

        def full() -> float:
            return server.metric("python_gc_collections_total", generation="2")

        before, calls = full(), 0
        tensors = {"input_bytes": 12, "output_bytes": 8}
        load = Load(server.target, "predict", "mlp", **tensors, warm_up_s=0.1, measure_s=1.0)
        while calls < 20_000:
            calls += generator.run(load)["messages"]
        # With Python's own settings there is one for every 4,000 calls.
        assert full() - before <= calls / 20_000
