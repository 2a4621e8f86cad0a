"""What a server takes, found from its refusals alone: so many requests at a time, so many a second, or none now.

`turns.Limit` gives turns; it promises that nothing waits and nothing is counted before the first refusal, that
turns are given in the order they were asked for, and that what it found is never exceeded by more than a probe.
`judge` decides which limit a refusal speaks of, by one table of modes over four ideas: `ceiling`, `pace`,
`probing`, `chance`. Only `turns` knows asyncio; the others are handed the time and can be tested without a clock.

May import: errors. Keeps to itself: everything but `turns.Limit` and the tickets that it hands out.
"""
