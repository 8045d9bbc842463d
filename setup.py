"""What pyproject.toml cannot say: the compiled modules. `compiled/backend.py` decides whether there are any."""

import os
import sys
from pathlib import Path

from setuptools import setup

root = Path(__file__).parent.resolve()
sys.path.insert(0, str(root / "compiled"))
if os.environ.get("STREAMCELL_COMPILE_NOW") == "1":
    from modules import extensions

    setup(ext_modules=extensions(root))
else:
    setup()
