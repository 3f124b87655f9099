"""What models are scored and measured on: documents, corpora per language, tokens cut into windows.

Knows where text comes from and how it is cut. Knows no model and no region.
"""
