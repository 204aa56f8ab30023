"""A delta's shift -> a base model's logits.

The sum itself (`control.py`), which adapters act and how strongly (`strengths.py`), one delta
following one reply (`steering.py`), an adapter made ready for one base vocabulary
(`loaded_adapter.py`), a pair of models in a delta's place (`proxy.py`). May import `text`, `base`,
`delta`. Knows nothing of batches, requests or sampling.
"""
