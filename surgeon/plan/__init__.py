"""Recipe + headers = what will happen, what it takes, and every objection that can be made beforehand.

Reads headers and texts only: no tensor's bytes, and no model is built.
"""
