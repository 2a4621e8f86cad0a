"""What a server takes, found from its refusals.

May import: errors.
"""
