"""stdin → blocks of lines → records → the bodies of requests, and their keys.

Promises: a record's bytes are kept as they came; a value that fills a placeholder is never expanded again;
equal input and options give equal bodies, which the cache's keys depend on.
May import: the leaves.
Keeps to itself: the thread that reads, and the grammar of placeholders.
"""
