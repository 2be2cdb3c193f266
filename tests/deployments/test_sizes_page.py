"""The table of pods in docs/deploying.md is what the code computes from the shipped catalogue.

If it fails, people plan nodes and budgets by numbers that no run gets.
``python -m tests.deployments.test_sizes_page`` writes the table.
"""

from dataclasses import dataclass

from resources.pods.sizing import Experience, device_need, gib, size_of_evaluating
from resources.registries import ModelVersion
from tests.conftest import ROOT
from tests.resources.pods.catalogues import shipped

PAGE = ROOT / "docs" / "deploying.md"
COMMAND = "python -m tests.deployments.test_sizes_page"
BEGIN, END = f"<!-- written by {COMMAND} -->\n", "<!-- end of what is written -->\n"
_BFLOAT16 = 2


@dataclass(frozen=True, slots=True)
class Published:
    """A model as its authors published it: from its config.json, and the parameters that this comes to."""

    name: str
    parameters: int
    layers: int
    key_value_heads: int
    head_dimension: int
    vocabulary: int
    context: int

    def version(self) -> ModelVersion:
        """What registering it would record; all of them are published in bfloat16."""
        numbers = 2 * self.layers * self.key_value_heads * self.head_dimension
        weights = _BFLOAT16 * self.parameters
        return ModelVersion(
            f"{self.name.replace(' ', '-')}@1", "", "", "", self.parameters, weights, {"bfloat16": weights},
            self.context, self.vocabulary, self.layers, _BFLOAT16 * numbers, chat_template=True,
        )  # fmt: skip


MODELS = (
    Published("SmolLM2 135M", 134_515_008, 30, 3, 64, 49_152, 8_192),
    Published("SmolLM2 360M", 361_821_120, 32, 5, 64, 49_152, 8_192),
    Published("Qwen2.5 0.5B", 494_032_768, 24, 2, 64, 151_936, 32_768),
    Published("Llama 3.2 1B", 1_235_814_400, 16, 8, 64, 128_256, 131_072),
    Published("Qwen2.5 1.5B", 1_543_714_304, 28, 2, 128, 151_936, 32_768),
    Published("SmolLM2 1.7B", 1_711_376_384, 24, 32, 64, 49_152, 8_192),
    Published("Gemma 2 2B", 2_614_341_888, 26, 4, 256, 256_000, 8_192),
    Published("Qwen2.5 3B", 3_085_938_688, 36, 2, 128, 151_936, 32_768),
    Published("Llama 3.2 3B", 3_212_749_824, 28, 8, 128, 128_256, 131_072),
    Published("Mistral 7B v0.3", 7_248_023_552, 32, 8, 128, 32_768, 32_768),
    Published("Qwen2.5 7B", 7_615_616_512, 28, 4, 128, 152_064, 32_768),
    Published("Llama 3.1 8B", 8_030_261_248, 32, 8, 128, 128_256, 131_072),
    Published("Gemma 2 9B", 9_241_705_984, 42, 8, 256, 256_000, 8_192),
    Published("Phi-4 14B", 14_659_507_200, 40, 10, 128, 100_352, 16_384),
    Published("Qwen2.5 14B", 14_770_033_664, 48, 8, 128, 152_064, 32_768),
    Published("Gemma 2 27B", 27_227_128_320, 46, 16, 128, 256_000, 8_192),
    Published("Qwen2.5 32B", 32_763_876_352, 64, 8, 128, 152_064, 32_768),
    Published("Mixtral 8x7B", 46_702_792_704, 32, 8, 128, 32_000, 32_768),
    Published("Llama 3.1 70B", 70_553_706_496, 80, 8, 128, 128_256, 131_072),
    Published("Qwen2.5 72B", 72_706_203_648, 80, 8, 128, 152_064, 32_768),
    Published("Llama 3.1 405B", 405_853_388_800, 126, 8, 128, 128_256, 131_072),
)


def table() -> str:
    """The table as Markdown: a line a model, the first pod that it gets."""
    catalogue = shipped()
    lines = [
        "| model | parameters | pod | memory of its devices | cores | memory | an hour |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for model in MODELS:
        version = model.version()
        size = size_of_evaluating(version, catalogue)
        pod, devices = size.accelerator, ""
        if size.count:
            offer = catalogue.accelerators[size.accelerator]
            need, _ = device_need(version, Experience(), "auto")
            pod = f"{size.count} x {size.accelerator}"
            devices = f"{gib(need).removesuffix(' GiB')} of {size.count * offer.memory_gib:g} GiB"
        price = "" if size.price is None else f"{size.price:.2f}{' spot' if size.spot else ''}"
        cells = (
            model.name,
            f"{model.parameters / 1e9:.2f} B",
            pod,
            devices,
            f"{size.cores:g}",
            gib(size.memory),
            price,
        )
        lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """The page with the table between its marks."""
    before, mark, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{PAGE}: the marks {BEGIN.strip()} and {END.strip()} are missing")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def test_the_page_has_the_pods_that_the_code_computes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    stale = with_table(page) != page
    assert not stale, f"{PAGE.name} has other pods than the code computes: run {COMMAND}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
