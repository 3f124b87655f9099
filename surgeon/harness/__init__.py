"""Tasks of lm-evaluation-harness (`pip install '.[tasks]'` in a checkout), whose code stays as it is.

The harness makes the requests and turns answers into its metrics; the answers come from elsewhere. Nothing here runs
a model but `models.speak`, and nothing outside of here imports the harness.
"""
