"""The report of a run: its data, and what is rendered from it: tables, page, figures, cards, manifest.

Computes nothing about a model: what is shown comes in as data.
"""
