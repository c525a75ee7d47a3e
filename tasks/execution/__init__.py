"""How stages are carried out: shards, devices, threads, loaded networks."""
