"""The delta model: its tokens -> its shift, by ONNX Runtime, and the adapter folder it comes in.

The only room that imports `onnxruntime` (in `session.py`). May import `text`. Knows nothing of base
models; `source.py` is all that the rooms above need to know of it.
"""
