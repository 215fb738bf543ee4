"""Utilities of the book: everything a notebook teaches is importable from here."""
