"""wv_train."""
