"""Uses Ray: starts or joins it, inspects its nodes, and executes runs and crafting on it."""
