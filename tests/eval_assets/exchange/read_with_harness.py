"""Read exported files with lm_eval's own code; runs inside the harness's environment.

    python read_with_harness.py FOLDER

prints each results file as `lm_eval run` prints its results and how many rows `datasets` reads of each
samples file, by the names that lm_eval's tracker takes from the files. Exits with an error where any of it
fails.
"""

import json
import sys
from pathlib import Path

import datasets
from lm_eval.utils import (
    get_file_datetime,
    get_file_task_name,
    get_results_filenames,
    get_sample_results_filenames,
    make_table,
)


def main() -> None:
    folder = Path(sys.argv[1])
    names = [str(path) for path in sorted(folder.rglob("*.json*"))]
    results = get_results_filenames(names)
    if not results:
        raise SystemExit(f"lm_eval finds no results in {folder}")
    for name in results:
        content = json.loads(Path(name).read_text(encoding="utf-8"))
        print(content["model_name"], get_file_datetime(name))
        print(make_table(content))
        if "groups" in content:
            print(make_table(content, "groups"))
    datasets.disable_progress_bars()
    for name in get_sample_results_filenames(names):
        task = get_file_task_name(Path(name).name)
        rows = datasets.load_dataset("json", data_files=name, split="train", cache_dir=str(folder / ".cache"))
        content = json.loads(Path(name).with_name(f"results_{get_file_datetime(name)}.json").read_text())
        asked = content["n-samples"][task]["effective"]
        filters = len(set(rows["filter"]))
        if len(rows) != asked * filters:
            raise SystemExit(f"{name}: {len(rows)} rows of {asked} items under {filters} filters")
        print(f"{task}: {len(rows)} samples, {', '.join(rows[0]['metrics'])}")


if __name__ == "__main__":
    main()
