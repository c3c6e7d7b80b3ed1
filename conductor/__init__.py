"""A team of language models that answers as one, and tells who did what.

This is the whole public surface; ``grammar``, ``runtime`` and ``training`` are its parts.
"""
