"""Steps: all replies under way go on by a token, base model and deltas side by side.

`step.py` is the loop's body, `step_plan.py` what one decode holds, `scoring.py` the same for texts
that are given. May import the rooms below; imports no llama.cpp. Knows token ids and logits, not
conversations.
"""
