"""wv_ingest."""
