"""A model's files, read lazily: headers, mapped tensors, names and what they mean, fingerprints.

Knows files and the Hub. Knows no region, no recipe and no running model.
"""
