"""Fine-tuning methods, one per file; `perdure.method.METHODS` is the table of them."""
