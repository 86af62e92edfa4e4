"""Fine-tuning methods, one per file; `perdure.method.METHODS` is the table of them.

MERGETUNE, which works in three spaces, has its learners in a second file.
"""
