"""The base model: tokens -> logits, by llama.cpp.

The only room that imports `llama_cpp`. May import `text`. Knows nothing of deltas or adapters;
`span.py` and `gguf_header.py` load nothing of llama.cpp.
"""
