"""Finding a region: one file per score, what is kept of scores between runs, and regions made from them.

Writes into the cache only.
"""
