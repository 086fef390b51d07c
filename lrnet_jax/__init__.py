"""Local Relation Networks in Flax NNX."""
