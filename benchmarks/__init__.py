"""Scripts that make perdure's bundled world, pre-train its tiny model and measure methods on it."""
