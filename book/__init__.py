"""The book: what the articles say of code and results is made, never written by hand.

results.py trains the ladder and keeps what it reaches; marks.py puts code, diffs, tables and
numbers into the articles; tables.py makes the tables.
"""
