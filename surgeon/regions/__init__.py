"""Regions as recipes ask for them; one file per kind: its schema, its outline from headers, how it is made, its words.

`cut` makes all regions that are selected by one score in one pass over a stream of scores.
"""
