"""What every tensor on disk is: asked of the model that transformers builds, hollow, and kept by content.

No tensor's values are read here, and no model is run. Names answer alone where they are plain (`plain.py`), so that
`plan` and `inspect` of such a family load neither torch nor transformers.
"""
