"""Ray: starting or joining it, what its nodes have, and how runs and crafting execute on it."""
