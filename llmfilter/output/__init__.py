"""Lines to stdout and stderr, and what a person sees on the terminal.

Promises: a line is written whole, once, in the order that was asked for; a reader that stalls stops nothing
but those who wait for room; nothing is drawn over what others print.
May import: the leaves.
Keeps to itself: the threads that write, escape codes, and what /proc tells of our neighbours.
"""
