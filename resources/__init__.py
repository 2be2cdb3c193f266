"""What evaluations are computed with: engines, registries, data sources and the results store.

Nothing here imports ``eval_assets``; an import contract in pyproject.toml holds that.
"""
