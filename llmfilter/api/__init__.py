"""What the chat API's bytes mean: an answer with status 200, an error, a stream of events.

Promises: nothing here waits, reads or writes; whatever a server sends comes out as a completion or as an
error that is named by its remedy, never as an exception of a library.
May import: the leaves.
Keeps to itself: the dialects of servers. No other room looks into a body.
"""
