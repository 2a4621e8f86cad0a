"""One request, sent when the server's limits allow it, and what came back.

Promises: what was sent is counted, what was not is abandoned when the run ends; what a server says in an
error is masked and bounded before it leaves this room; an answer is never altered.
May import: the leaves, api.
Keeps to itself: aiohttp (`tls`, `exchange`, `direct`, `network`), and how a limit is found (`limit`).
"""
