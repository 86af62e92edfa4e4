"""What fine-tuning did to a model: its weights, its features, its answers; after a run or in it."""
