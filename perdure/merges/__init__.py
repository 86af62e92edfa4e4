"""Kinds of merges, their members, and what they measure."""
