"""Lines, and the terminal.

May import: the leaves.
"""
