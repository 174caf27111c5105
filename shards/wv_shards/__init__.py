"""wv_shards."""
