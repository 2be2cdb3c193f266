"""The grid of models and datasets: what is tracked, what each cell is today, and what should run.

`observing` reads registries, store and instance into a world, `reconciling` decides, `attempts` remembers.
"""
