"""The report of a run: its data, and how it is shown."""
