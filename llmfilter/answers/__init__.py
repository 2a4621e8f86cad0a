"""A content → an answer that passed its checks. Pure.

May import: the leaves.
"""
