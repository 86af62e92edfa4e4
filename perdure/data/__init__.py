"""Where images, labels and captions come from, and in which order."""
