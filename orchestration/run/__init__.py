"""One run, without Ray: execution, directory, retries, preemption, heartbeat."""
