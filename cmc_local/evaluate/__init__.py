"""What `cmc-local eval` measures: likelihood, ROUGE, TOFU, the small world, shifts; and its report.

May import everything up to `model`: it runs models as a user would. Knows nothing of the command
line; what the extra `eval` installs is imported when it is used.
"""
