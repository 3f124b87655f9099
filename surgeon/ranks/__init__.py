"""Several processes at one recipe, as torchrun starts them. The only room that knows of ranks.

`group` is who is who, and what passes between two of them; `team` deals jobs out and collects their results.
"""
