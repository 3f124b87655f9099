"""The scores of a plan: out of the cache, or by a pass through the model, on one process or several.

Nothing here knows of a kind of score or region.
"""
