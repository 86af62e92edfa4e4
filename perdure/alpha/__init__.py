"""How far to go from zero-shot to a fine-tuned run, chosen without shifted data."""
