"""Regenerate the committed gRPC stubs: `python proto/generate.py`, or `--check` to fail where they are stale.

Generated code refuses a protobuf runtime older than its generator, so the lowest supported grpcio-tools
writes it. That release lives in a virtual environment of its own, `build/protoc`, made on first use.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

GRPCIO_TOOLS = "1.72.2"
PROTO = Path(__file__).resolve().parent
TOOLS = PROTO.parent / "build" / f"protoc-{GRPCIO_TOOLS}"
SOURCES = ("streamcell/v1/streamcell.proto", "inference/inference.proto")


def _python() -> Path:
    python = TOOLS / "bin" / "python"
    if not (TOOLS / "ready").exists():
        venv.create(TOOLS, with_pip=True, clear=True)
        packages = (f"grpcio-tools=={GRPCIO_TOOLS}", f"grpcio=={GRPCIO_TOOLS}", "setuptools<81")
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
        (TOOLS / "ready").touch()
    return python


def generate(target: Path) -> None:
    """Write the stubs of every source below `target`."""
    flags = [f"--python_out={target}", f"--pyi_out={target}", f"--grpc_python_out={target}"]
    subprocess.run(
        [_python(), "-m", "grpc_tools.protoc", f"-I{PROTO}", *flags, *SOURCES], check=True, cwd=PROTO
    )
    for stub in target.rglob("*_pb2_grpc.py"):
        text = stub.read_text()
        # protoc imports by proto package; ours sits inside `streamcell.proto`.
        stub.write_text(re.sub(r"from (streamcell\.v1|inference) import", "from . import", text))
    _keep_apart(target / "inference" / "inference_pb2.py")


def _keep_apart(stub: Path) -> None:
    """Give a stub a descriptor pool of its own.

    Other packages, `tritonclient` among them, bring their own messages of the package `inference`, and protobuf's
    default pool refuses a name that it has from another file.
    """
    text = stub.read_text()
    if "_descriptor_pool.Default()" not in text:
        raise RuntimeError(f"{stub.name}: protoc no longer writes `_descriptor_pool.Default()`")
    stub.write_text(text.replace("_descriptor_pool.Default()", "_descriptor_pool.DescriptorPool()"))


def stale() -> list[str]:
    """The committed stubs that differ from what the sources give."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = {path.relative_to(folder): path.read_text() for path in Path(folder).rglob("*.py*")}
    return [
        str(name)
        for name, text in sorted(fresh.items())
        if not (PROTO / name).exists() or (PROTO / name).read_text() != text
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where a stub is stale")
    if not parser.parse_args().check:
        generate(PROTO)
        return 0
    if names := stale():
        sys.stderr.write(f"stale stubs, run `python proto/generate.py`: {', '.join(names)}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
