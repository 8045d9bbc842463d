"""`make fuzz`: broken messages at real servers beside honest clients, and the parsers under coverage-guided fuzzing.

FUZZ_S, 600 seconds if not given, is shared by all: half by the servers, in rounds whose seeds are told, half by the
parsers. Ends with 1 on the first finding.
"""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .parsers import TARGETS, seeds

_ROUND = 4000  # broken messages on one server


def main() -> int:
    """Fuzz; the exit code."""
    seconds = float(os.environ.get("FUZZ_S", "600"))
    seed = int(os.environ.get("FUZZ_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        _export(models)
        end_s = time.monotonic() + seconds / 2
        number = 0
        while time.monotonic() < end_s:
            if not _round(models, seed + number, frontends=2 * (number % 2), end_s=end_s):
                return 1
            number += 1
    return 0 if _parsers(seconds / 2) else 1


def _export(folder: Path) -> None:
    import torch

    from streamcell.export import export_model
    from streamcell.models import build

    from .honest import INPUT, echo_model

    torch.manual_seed(7)
    config = {"kind": "lstm", "input_size": INPUT, "hidden_size": 16, "output_size": 2, "num_layers": 2}
    export_model(build(config).eval(), folder / "lstm.onnx", name="lstm")
    echo_model(folder)


def _round(models: Path, seed: int, frontends: int, end_s: float) -> bool:
    """One server, attacked for a while; whether all was well."""
    from streamcell.client.local_server import ServerProcess

    from .attack import Attacker
    from .honest import CLIENTS

    flags = ["--max-chunk", "16", "--max-sessions", "64", "--frontends", str(frontends)]
    with ServerProcess(models, *flags).wait_until_up() as server:
        honest = [kind(server.target, models, seed + at) for at, kind in enumerate(CLIENTS)]
        attackers = [Attacker(server.target, seed + at, _ROUND // 2) for at in range(2)]
        for thread in (*honest, *attackers):
            thread.start()
        for attacker in attackers:
            while attacker.is_alive():
                attacker.join(1)
                if time.monotonic() > end_s:
                    attacker.stop()
        for client in honest:
            client.going = False
        for client in honest:
            client.join(60)
        found = [each for attacker in attackers for each in attacker.found]
        found += [client.wrong for client in honest if client.wrong]
        found += [f"{type(client).__name__} hangs" for client in honest if client.is_alive()]
        if server.process.poll() is not None:
            found.append(f"the server ended with {server.process.returncode}: {server.said}")
    sent, answered = sum(each.sent for each in attackers), sum(each.exchanges for each in honest)
    print(
        f"seed {seed}, {frontends} front ends: {sent} broken messages, {answered} honest exchanges",
        flush=True,
    )
    for each in found:
        print(f"FOUND {each}", flush=True)
    return not found


def _parsers(seconds: float) -> bool:
    """Each parser for its share of the time; whether all was well."""
    if importlib.util.find_spec("atheris") is None:
        print(
            "SKIPPED: atheris is not installed, so no parser was fuzzed: pip install 'streamcell[fuzz]'",
            flush=True,
        )
        return True
    for target in TARGETS:
        with tempfile.TemporaryDirectory() as folder:
            for at, seed in enumerate(seeds(target)):
                (Path(folder) / str(at)).write_bytes(seed)
            share = max(1, round(seconds / len(TARGETS)))
            command = [sys.executable, "-m", "tests.hostile.parsers", target, folder]
            options = [f"-max_total_time={share}", "-max_len=600", "-verbosity=0", "-print_final_stats=1"]
            done = subprocess.run([*command, *options, f"-artifact_prefix={target}-"], check=False)
        print(f"parser {target}: {'fine' if not done.returncode else 'FOUND, see above'}", flush=True)
        if done.returncode:
            return False
    return True


if __name__ == "__main__":
    sys.exit(main())
