"""Importance scores; one file per score."""
