"""What the chat API's bytes mean. Pure.

May import: the leaves.
"""
