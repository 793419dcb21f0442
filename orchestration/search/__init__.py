"""The search of a study: its queue of trials, the sampler and pruner, Ray Tune, and the driver that records results."""
