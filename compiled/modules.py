"""Which modules mypyc compiles, and which of their folders' modules stay interpreted, with the reason.

A module belongs here if messages pass through it and it compiles as it is. mypyc (https://mypyc.readthedocs.io) takes
what mypy has checked; what it compiles behaves as before but for these rules, which the lists and the tests hold:

- an attribute of a class is read where that class has it: a subclass may not put a property in its place;
- interpreted code may subclass only what has `@mypyc_attr(allow_interpreted_subclasses=True)`;
- `sys.setprofile` sees no compiled function, and methods of compiled classes cannot be replaced;
- an attribute that was None is None until the function ends, though a call may have set it: such code is an error here;
- mypyc's warnings are errors here: a generator that becomes a list would hold all of its items.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from setuptools import Extension

# By folder of `service/`: what each message passes through, and what shares attributes with it.
COMPILED = {
    folder: tuple(names.split())
    for folder, names in {
        ".": "build_info",
        "batching": "batch batch_runner batcher fair_queue guarded_run inline row_staging runner turn_taking",
        "generation": "search_work work",
        "metrics": "histogram model_metrics request_metrics",
        "protocols/common": "call_context openings requests unary_rows",
        "protocols/native": "call_session frame_requests frame_stream kept_session known_openings messages openings"
        " leaving predict resumable resumable_frames resumable_stream resuming_call stored_session stream wire",
        "protocols/oip": "entry infer numbers reply request_cache requests rows sequence sequences stream tensors"
        " unary",
        "sessions": "attention capacity expiry ids kept_replies live model opening_order session shared_capacity table"
        " tenant_orders told value_check",
        "transport": "answer_once calls fast_stream fast_unary first_messages in_flight read_pacing segments",
    }.items()
}

_RARE = "is not on a message's way"
_NUMPY = "numpy does its work: nothing to gain"

# The other modules of these folders, and why they stay as they are.
INTERPRETED = {
    "generation/beam_search": _NUMPY,
    "generation/loop": _NUMPY,
    "generation/outcome": "plain data",
    "generation/reply": "plain data",
    "generation/sampling": _NUMPY,
    "generation/search_loop": _NUMPY,
    "protocols/common/audited": _RARE,
    "protocols/common/metered": "only for tenants whose bytes are bounded",
    "protocols/common/protobuf": _RARE,
    "protocols/common/scopes": "once a call, and only if the server asks who calls",
    "protocols/native/frame_parts": _NUMPY,
    "protocols/native/generation_requests": "one message of many steps: nothing to gain",
    "protocols/native/journal_place": "for sessions in a journal alone, where the disk costs more",
    "protocols/native/management": _RARE,
    "protocols/native/moving": _RARE,
    "protocols/native/recovered": _RARE,
    "protocols/native/resumable_openings": _RARE,
    "protocols/oip/describe": _RARE,
    "protocols/oip/repository": _RARE,
    "protocols/oip/scoped_infer": "once a call, and only if the server asks who calls",
    "protocols/oip/service": _RARE,
    "protocols/native/snapshots": "bytes for hashlib and numpy: nothing to gain",
    "protocols/native/state_copies": _RARE,
    "protocols/native/stored_image": "for sessions in a shared store alone, which costs more",
    "protocols/native/stored_sessions": _RARE,
    "sessions/image": _NUMPY,
    "sessions/replica": _RARE,
    "sessions/resume_errors": _RARE,
    "sessions/snapshot_errors": _RARE,
    "transport/answering": _RARE,
    "transport/completion_queue": "its queue is a subclass of grpcio's, which is written in Cython",
    "transport/connection_memory": _RARE,
    "transport/control_thread": _RARE,
    "transport/fast_lane": "makes handlers once; tests replace its methods",
    "transport/grpc_polling": _RARE,
    "transport/grpc_server": _RARE,
    "transport/guard": "once a call, and only if the server asks who calls",
    "transport/health": _RARE,
    "transport/lane_choice": "runs once; its error is a subclass of RuntimeError, which mypyc does not compile",
    "transport/new_calls": "its server is a subclass of grpcio's, which is written in Cython",
    "transport/os_limits": _RARE,
    "transport/passed_call": "only for calls that are traced, or of tenants whose bytes are bounded",
    "transport/reading_turns": "only for servers with a policy file; its lines are referred to weakly",
    "transport/reflection": _RARE,
    "transport/tcp_figures": _RARE,
    "transport/threaded_lane": "leaves loops within `with`, which mypyc does not compile; its threads cost more",
    "transport/threaded_unary": "its threads cost more",
    "transport/tls": "runs once; its error is a subclass of OSError, which mypyc does not compile",
}

# Metrics are read seldom; only those that messages count are compiled.
_WHOLE = tuple(folder for folder in COMPILED if folder not in (".", "metrics"))

_PACKAGES = ("benchmarks", "card", "cli", "client", "export", "models", "proto", "service", "study")


class CompileError(Exception):
    """A module cannot be compiled as it is; the text is mypyc's."""


def compiled_modules(root: Path) -> list[str]:
    """The compiled modules' paths below `service/`, sorted. `root` is the checkout."""
    return sorted(
        (Path(folder) / f"{name}.py").as_posix() for folder, names in COMPILED.items() for name in names
    )


def forgotten(root: Path) -> set[str]:
    """Modules of the compiled folders that are in neither list, or in a list and not there."""
    listed = {path[:-3] for path in compiled_modules(root)} | INTERPRETED.keys()
    there = {
        (Path(folder) / path.stem).as_posix()
        for folder in COMPILED
        for path in (root / "service" / folder).glob("*.py")
        if path.name != "__init__.py"
    }
    return {path for path in listed ^ there if path in listed or path.rpartition("/")[0] in _WHOLE}


def taken_for_none(ops: str) -> list[str]:
    """Attributes that compiled code expects to be None, with their functions, in mypyc's listing of operations.

    mypy believes that an attribute is still None after a call that may have set it. Compiled code then fails.
    """
    found: list[str] = []
    function, made = "", dict[str, str]()
    for line in ops.splitlines():
        if line.startswith("def "):
            function, made = line[4:].partition("(")[0], {}
        elif match := re.match(r"\s+(r\d+) = (.*)", line):
            register, made[match[1]] = match[1], match[2].strip()
            of_none = re.match(r"(?:unbox|cast)\(None, (r\d+)\)", made[register])
            if of_none and re.fullmatch(r"(?:borrow )?\w+\.\w+", source := made.get(of_none[1], "")):
                found.append(f"{function}: {source}")
    return found


def extensions(root: Path) -> list[Extension]:
    """Translate the modules to C below `build/compiled` and return what is to be compiled.

    Raises:
        CompileError: mypy or mypyc does not accept a module, or warns.
    """
    from mypyc.build import mypycify

    # mypy finds packages by folder, and the folders are sub-packages of `streamcell`: link them as it expects.
    links = root / "build" / "compiled" / "links"
    (links / "streamcell").mkdir(parents=True, exist_ok=True)
    for name in (*_PACKAGES, "__init__.py"):
        link = links / "streamcell" / name
        link.unlink(missing_ok=True)
        link.symlink_to(root / "package" / name if name == "__init__.py" else root / name)
    options = [
        # Stubs of other versions than ours may need other comments, or none.
        *("--no-warn-unused-ignores", "--no-warn-return-any"),
        f"--config-file={root / 'pyproject.toml'}",
        f"--cache-dir={root / 'build' / 'compiled' / 'cache'}",
    ]
    files = [f"{links / 'streamcell' / 'service' / name}" for name in compiled_modules(root)]
    said = io.StringIO()
    before = os.environ.get("MYPYPATH")
    os.environ["MYPYPATH"] = str(links)
    try:
        with contextlib.redirect_stdout(said):
            made = mypycify(
                [*options, *files],
                opt_level=os.environ.get("STREAMCELL_COMPILE_LEVEL", "3"),
                debug_level="0",
                target_dir=str(root / "build" / "compiled" / "c"),
                group_name="streamcell",
            )
    except SystemExit as error:
        raise CompileError(said.getvalue()) from error
    finally:
        if before is None:
            del os.environ["MYPYPATH"]
        else:
            os.environ["MYPYPATH"] = before
    if "warning:" in said.getvalue():
        raise CompileError(said.getvalue())
    if stale := taken_for_none((root / "build" / "compiled" / "c" / "ops.txt").read_text()):
        raise CompileError(f"read as None because it was None before a call: {'; '.join(stale)}")
    for each in made:
        # A compiler newer than mypyc may warn of more.
        each.extra_compile_args = [flag for flag in each.extra_compile_args if flag != "-Werror"]
    return made
