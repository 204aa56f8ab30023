"""What users hold: SteeredModel, SharedModel, and the life of a reply, Ask -> Request -> Reply.

May import the rooms below. Knows nothing of the command line, the server or the hub.
"""
