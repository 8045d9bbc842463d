"""ONNX Runtime's usage telemetry is off, unless its user has said otherwise. It reads this when first imported."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
