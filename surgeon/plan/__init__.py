"""Recipe + headers = what will happen, what it takes, and every objection that can be made beforehand.

Reads headers and texts only, and no model is built; before a run the bases of patches are hashed, too.
"""
