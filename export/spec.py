"""`path/to/file.py:factory` → a module."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from torch import nn

from .errors import SpecError
from .user_errors import told, user_code


def is_spec(text: str) -> bool:
    """Whether `text` has the form FILE.py:NAME."""
    file, colon, factory = text.rpartition(":")
    return bool(colon and file.endswith(".py") and factory)


def load_module(spec: str) -> nn.Module:
    """Run a Python file and call the named function without arguments, or class of modules.

    The file runs with its own folder on the import path, as `python file.py` would have it. It is the user's
    own code, run on the user's word; the server never does this.

    Raises:
        SpecError: no such file or name, or the result is not a `torch.nn.Module`.
        UserCodeError: the file or the factory raised an exception.
    """
    if not is_spec(spec):
        raise SpecError(f"expected FILE.py:FACTORY; got {spec!r}")
    text, _, name = spec.rpartition(":")
    file = Path(text).resolve()
    if not file.is_file():
        raise SpecError(f"there is no file {text}: the source is a run folder or FILE.py:FACTORY")
    found = importlib.util.spec_from_file_location(f"streamcell_user_{file.stem}", file)
    if found is None or found.loader is None:
        raise SpecError(f"{text} cannot be imported")
    namespace = importlib.util.module_from_spec(found)
    # By name, so that torch and copy can find the classes that the file defines.
    sys.modules[found.name] = namespace
    sys.path.insert(0, str(file.parent))
    try:
        with user_code(f"{text} does not run"):
            found.loader.exec_module(namespace)
        factory = getattr(namespace, name, None)
        if not callable(factory):
            raise SpecError(f"{text} has no function or class {name}; it has {_offered(namespace)}")
        with user_code(f"{name}() fails"):
            module = factory()
    except SystemExit as error:
        raise SpecError(f"{text} ends the program: {told(error)}") from error
    finally:
        sys.path.remove(str(file.parent))
    if not isinstance(module, nn.Module):
        raise SpecError(f"{spec} must return a torch.nn.Module; got a {type(module).__name__}")
    return module


def _offered(namespace: ModuleType) -> str:
    """Names of what the file itself defines."""
    names = [
        name
        for name, value in vars(namespace).items()
        if callable(value)
        and not name.startswith("_")
        and getattr(value, "__module__", "") == namespace.__name__
    ]
    return ", ".join(names) or "none"
