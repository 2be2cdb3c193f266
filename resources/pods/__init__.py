"""Runs as Kubernetes pods: what a cluster offers, what a model needs, and what becomes of a pod.

`catalogue` reads what a cluster offers, `sizing` chooses from it (pure), `config` writes the choice as
Dagster and Kubernetes read it (pure), `diagnosis` tells what a Job and its pods mean (pure), `watch` brings
what is and what should be together. `resources.launcher` is what Dagster sees of all that.
"""
