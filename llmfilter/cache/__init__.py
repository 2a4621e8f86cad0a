"""Answers that were paid for, durable, and what is made of them.

May import: the leaves, api, answers.
"""
