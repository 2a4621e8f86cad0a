"""A model's content → an answer that passed its checks.

Promises: what is ambiguous is refused, never guessed; a string of an answer is never altered; nothing in a
schema reaches network or disk.
May import: the leaves.
Keeps to itself: how an object is found in prose, and the library that checks schemas.
"""
