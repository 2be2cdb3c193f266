"""What can't be read: a list of all such files, and the page of a cell of which nothing can be read."""

from collections.abc import Iterator

from eval_assets.report import naming
from eval_assets.report.reading import Results
from eval_assets.report.rendering import render
from eval_assets.report.writing import Page, plain


def damaged_list(results: Results) -> Page:
    """The page of everything in the store that can't be read: which file, and why."""
    path = naming.DAMAGED
    models = set(results.models)

    def files() -> Iterator[tuple[str, bytes]]:
        links = {
            one.model: naming.link(path, naming.model_page(one.model))
            for one in results.damaged
            if one.model in models and one.model is not None
        }
        yield path, render("damaged.html.j2", path, damaged=results.damaged, links=links)

    shown = [[*(plain(one) or []), one.model in models] for one in results.damaged]
    return Page(path, shown, files)


def damaged_cell_page(results: Results, dataset: str, model: str) -> Page:
    """The page of a cell that was evaluated, but none of whose evaluations can be read."""
    path = naming.cell_page(dataset, model)
    damaged = [one for one in results.damaged_of[model] if one.dataset == dataset]

    def files() -> Iterator[tuple[str, bytes]]:
        model_page = naming.link(path, naming.model_page(model))
        yield (
            path,
            render(
                "damaged_cell.html.j2",
                path,
                dataset=dataset,
                model=model,
                damaged=damaged,
                model_page=model_page,
            ),
        )

    return Page(path, list(map(plain, damaged)), files)
