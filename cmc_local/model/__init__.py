"""What users hold: SteeredModel, SharedModel, and the life of a reply, Ask -> Request -> Reply.

`requests.py` makes requests of asks, `replies.py` writes one, `batching.py` steps several,
`queue.py` says whose turn it is. May import the rooms below. Knows nothing of the command line, the
server or the hub.
"""
