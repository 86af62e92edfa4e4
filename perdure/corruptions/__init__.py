"""Damage to pictures in fifteen common and four further ways, in five degrees each."""
