"""Overlays made from what a run knows: features, clusters, tiers, a teacher's labels, suspects; `wv-annotate`."""
