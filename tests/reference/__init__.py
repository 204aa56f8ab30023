"""The whole method once more, simple and slow: what the runner is compared with.

    llama.py        a llama in plain PyTorch, from a GGUF, an ONNX delta or a Hugging Face folder
    text/vocabulary.py   texts and roles of a GGUF's and a tokenizer.json's tokens
    folder.py       a GGUF turned back into its Hugging Face folder
    model/steered.py      base + sum of alpha * map(delta), everything computed anew at every step

Nothing here imports the runner's arithmetic, its readers or its aligner; of `cmc_local` only the
names of the roles and the container of a vocabulary are used. No caches beyond memoised calls.
"""
