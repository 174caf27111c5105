"""wv_loader."""
