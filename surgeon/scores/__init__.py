"""How important every entry is: one file per kind of score, and the passes forward and back that make them.

`scoring.py` above runs those of a plan, and keeps them. Writes into the cache only.
"""
