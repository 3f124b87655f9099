"""The report of a run: its data, and what is rendered from it: terminal, page, figures, cards, manifest.

Computes nothing about a model: what is shown comes in as data.
"""
