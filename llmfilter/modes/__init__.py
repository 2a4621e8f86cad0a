"""What is done with a block of lines: asked, printed, or stored.

May import: all folders, and the pipeline.
"""
