"""Adapters and GGUF files from a Hugging Face hub, checked before use.

May import `delta` (what an adapter folder must hold). Knows nothing of running models.
"""
