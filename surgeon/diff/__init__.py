"""Two checkpoints, or two regions, held against each other.

Reads only.
"""
