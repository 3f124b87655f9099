"""What is measured of a base and its variants: a file per kind of measurement, and the one pass that serves them all.

A kind looks at the models' outputs and says what each is worth; which models there are, how they are run, and what is
shown of it, no kind knows. Writes no file but what is kept of figures.
"""
