"""Talking to a base and its variants side by side: on the terminal, or on the report's page on loopback.

Nothing here is measured, and nothing is written.
"""
