"""wv_bench."""
