"""The workspace (ERAT_HOME) and the storage that the nodes of a cluster share."""
