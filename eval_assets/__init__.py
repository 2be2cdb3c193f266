"""What is computed: partitioned assets, checks, tasks, metrics and statistics."""
