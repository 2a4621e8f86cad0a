"""stdin → records → request bodies.

May import: the leaves.
"""
