"""What is done with a block of lines: asked (`ask`), printed (`preview`), or stored (`from_batch`).

Promises: each line that was taken ends in exactly one line, or the run says from which line on none did.
Each mode is a class over the same frame (pipeline.Mode); none knows another.
May import: all folders, and the pipeline.
Keeps to itself: who shares a request and who has a slot, when a row is given up, and what ends a run.
"""
