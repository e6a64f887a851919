"""Published weights: one converter per source."""
