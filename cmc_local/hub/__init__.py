"""Adapters and GGUF files from a Hugging Face hub, checked before use.

`places.py` reads what is typed: a path, a bundled name, a repository, a strength. May import
`delta` (what an adapter folder must hold). Knows nothing of running models.
"""
