"""One run, without Ray: its execution, directory, heartbeat, preemption and retries."""
