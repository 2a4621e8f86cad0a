"""What a server takes, found from its refusals alone: so many requests at a time, so many a second, or none now.

Promises: nothing waits before the first refusal; turns are given in the order they were asked for; what was
found is exceeded by probes only.
`judge` decides which limit a refusal speaks of, by a table of modes, and each mode is an idea of its own: `ceiling`,
`trial`, `pace`, `probing`. What tells limits apart are two more: `blame` (a number or a rate?) and `chance`. Only
`turns` knows asyncio; the others are handed the time, and need no clock to be tested.
May import: the leaves.
Keeps to itself: all but `turns.Limit` and the tickets that it hands out.
"""
