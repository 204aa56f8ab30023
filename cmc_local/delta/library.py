"""ONNX Runtime as the deltas use it: the one place that imports it, and with its telemetry off.

Builds of 1.31 look their maker up and send events some seconds after they were loaded, unless the
environment forbids it before that; `disable_telemetry_events` comes too late on Linux. A program
that imports onnxruntime before us has to set the variable itself.
"""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort

__all__ = ["ort"]
