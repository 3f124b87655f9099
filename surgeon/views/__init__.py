"""What the commands show: plans, differences, files and reports, as tables for the terminal or as plain data.

Decides nothing and writes nothing.
"""
