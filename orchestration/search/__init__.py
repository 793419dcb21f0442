"""What is tried next: the queue, Ray Tune and Optuna, the driver."""
