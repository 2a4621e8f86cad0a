"""Answers that were paid for: durable before their row is printed, and what is made of them later.

Promises: what `put` said is stored survives a power cut; a damaged value is a miss, never another answer;
a cache that fails is said once, and the run goes on.
May import: the leaves, api, answers.
Keeps to itself: lmdb, and the format of what is stored (`stored`; `replay` reads it in one piece for speed).
"""
