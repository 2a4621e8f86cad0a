"""One request, when the server's limits allow it, and what came back.

May import: the leaves, api.
"""
