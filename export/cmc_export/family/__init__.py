"""A small family of models from real texts: what the commands do with data that nobody made up.

The texts have licences of their own and are read from the folder that CMC_DATA names; what is
trained on them stays in runs/family.
"""
