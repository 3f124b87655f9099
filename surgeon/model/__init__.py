"""Running a model over its mapped files: its parameters by their names on disk, perplexity, continuations.

The only room, with `scores`, that runs torch on weights. Writes no file.
"""
