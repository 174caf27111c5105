"""Raw web images in, verified shards out: sources, checks, planning, packing, and the command `wv-ingest`.

It trains nothing and loads nothing; of the other rooms it knows `wv_shards` only.
"""
