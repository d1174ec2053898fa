"""verdict: whether a run lives on a device, from the walk and a replay of the allocator."""
