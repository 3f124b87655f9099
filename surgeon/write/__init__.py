"""Making a variant: bytes copied and poked, staged beside its name, flushed, renamed, and marked.

The only room that writes checkpoints. Measures nothing.
"""
