"""Bytes, tokens, prompts: everything that needs no model.

Vocabularies and the map between two of them, the delta's tokenizer and its alignment with a growing
reply, prompt forms, a base model's chat template, data files. May import `errors`, `settings` and
the other leaves of `cmc_local`. Knows neither llama.cpp nor ONNX Runtime, and no logits.
"""
