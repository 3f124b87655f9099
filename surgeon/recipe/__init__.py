"""What the user asks for: the schema, the file with its lines, sweeps, and names that refer to nothing.

Knows no checkpoint: whatever needs headers to be checked belongs into `plan`.
"""
