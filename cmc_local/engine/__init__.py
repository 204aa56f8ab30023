"""Steps: all replies under way go on by a token, base model and deltas side by side.

`step.py` is the loop's body, `slots.py` what it works on and what one decode holds,
`delta_thread.py` the deltas at work meanwhile, `scoring.py` the same for texts that are given. May
import the rooms below; imports no llama.cpp. Knows token ids and logits, no text.
"""
