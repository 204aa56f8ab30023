"""`cmc-local serve`: a steered model for OpenAI's clients and a browser.

    observing.py -> guard.py -> app.py -> chat.py, completions.py
                                  |         bodies.py -> requests.py (names.py, forms.py) -> asks
                                  |         replying.py -> shared.SharedModel -> pieces
                                  |         answering.py (shapes.py, logprobs.py) -> JSON, events
                                  `-> embeddings.py, texts.py, adapters.py, models.py, health.py,
                                      pages.py
    running.py: the socket (protocol.py), signals, the end

Everything here runs on one event loop and knows no tensors; the model has a thread of its own.
"""
