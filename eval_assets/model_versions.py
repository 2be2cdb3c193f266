"""Asset `model_version`: a version of a model, fetched, verified, measured and recorded."""

from collections.abc import Iterator
from dataclasses import replace

import dagster as dg

from eval_assets.grid.attempts import announce, begin, confessing
from eval_assets.grid.reconciling import Task, Work, short
from eval_assets.materializations import record_materialization
from eval_assets.partitions import models
from resources.errors import UserError
from resources.keys import ModelKey
from resources.registries import ModelVersion, Registry
from resources.registries.verify import measure
from resources.results import ResultsStore

CODE_VERSION = "1"


@dg.asset(
    partitions_def=models,
    output_required=False,
    code_version=CODE_VERSION,
    group_name="inputs",
    kinds={"huggingface", "safetensors"},
    owners=["team:evaluation"],
    tags={"stage": "inputs"},
    pool="registry",
)
def model_version(
    context: dg.AssetExecutionContext,
    registry: dg.ResourceParam[Registry],
    store: dg.ResourceParam[ResultsStore],
) -> Iterator[dg.Output[None]]:
    """A model version whose files were verified (digest, safetensors, tokenizer) and measured."""
    yield from ()
    begin(context)
    for key in context.partition_keys:
        task = registration(key, registry)
        announce(context, [task])
        with confessing(context, task):
            register(context, key, registry, store)


def registration(key: str, registry: Registry) -> Task:
    """The task of registering a version as its files are now; without a fingerprint where it has none."""
    try:
        revision = registry.revision(ModelKey.parse(key))
    except UserError:  # `register` meets it again, and says so
        revision = ""
    return Task(Work.REGISTER, key, "", short(revision))


def register(
    context: dg.AssetExecutionContext | dg.OpExecutionContext,
    key: str,
    registry: Registry,
    store: ResultsStore,
) -> ModelVersion:
    """Fetch, verify and measure a version, record it in the store and as a materialization.

    Raises UserError for what is wrong with it.
    """
    revision = registry.revision(ModelKey.parse(key))  # first: what changes from here on is seen next time
    version = replace(measured(key, registry, store), revision=revision)
    store.save_model_version(key, version.as_dict())
    record_materialization(
        context,
        "model_version",
        key,
        data_version=version.digest,
        code_version=CODE_VERSION,
        inputs={},
        metadata={
            "digest": version.digest,
            "architecture": version.architecture,
            "parameters": version.parameters,
            "weights": dg.MetadataValue.text(f"{version.weight_bytes / 1e6:,.0f} MB"),
            "weight_bytes": version.weight_bytes,
            "bytes_by_dtype": dg.MetadataValue.json(dict(version.bytes_by_dtype)),
            "context_length": version.context_length,
            "vocabulary": version.vocabulary,
            "kv_bytes_per_token": version.kv_bytes_per_token,
            "chat_template": version.chat_template,
            "folder": dg.MetadataValue.path(version.path),
        },
    )
    context.log.info(f"{key}: {version.parameters:,} parameters, digest {version.digest[:12]}")
    return version


def measured(key: str, registry: Registry, store: ResultsStore) -> ModelVersion:
    """The version as its files are now; files whose size and time are as recorded are not read again."""
    parsed = ModelKey.parse(key)
    record = store.model_version(key)
    return measure(parsed, registry.fetch(parsed), ModelVersion.from_dict(record).files if record else None)


def recorded(key: str, registry: Registry, store: ResultsStore) -> ModelVersion:
    """The recorded version, for an evaluation.

    Raises UserError where it was never recorded or its files are no longer those that were recorded.
    """
    record = store.model_version(key)
    if record is None:
        registry.fetch(ModelKey.parse(key))
        raise UserError(
            f"model version {key} is not registered yet: run the job 'register_models' "
            "(or 'make register'), then evaluate it"
        )
    now = measured(key, registry, store)
    if now.digest != record["digest"]:
        raise UserError(
            f"model version {key}: its files changed since it was registered (digest {record['digest'][:12]} "
            f"is now {now.digest[:12]}): run the job 'register_models' again, then evaluate it"
        )
    return now
