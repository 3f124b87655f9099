"""Sets of entries: selecting them, combining them, counting where they crowd, and their files.

Knows the shapes and names of tensors. Knows no recipe, no text and no running model.
"""
