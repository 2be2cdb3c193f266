"""``retention``: what of the results is kept."""

from pathlib import Path

import click

from eval_assets.commands.output import Output, output


@click.command()
@click.option(
    "--policy",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML file of what to keep (docs/retention.md); by default its defaults",
)
@click.option("--apply", "applies", is_flag=True, help="do it; without this it is only shown")
@click.option("--why", help="the reason, which is written down with every change; needed for --apply")
@click.option("--log", "logs", is_flag=True, help="show what the last 20 runs removed, the latest first")
@click.option("--no-registry", is_flag=True, help="only the store and EVAL_MODELS say what is in production")
@output
def retention(
    out: Output, file: Path | None, applies: bool, why: str | None, logs: bool, no_registry: bool
) -> None:
    """Show what of old results would be removed, or remove it; what anything rests on stays."""
    from collections import Counter
    from dataclasses import asdict

    from eval_assets.operations.retention import retain, retention_plan
    from resources.errors import UserError
    from resources.results import ResultsStore
    from resources.retention import RetentionPolicy, audit_lines, last_audits, load_policy
    from resources.settings import Settings

    if applies and not (why or "").strip():
        raise UserError("--apply needs a reason: --why 'disk is full'; it is written down with every change")
    settings = Settings.from_environment()
    store = ResultsStore(settings.store)
    policy = load_policy(file) if file is not None else RetentionPolicy()
    if logs:
        audits = last_audits(store)
        for line in (line for audit in audits for line in audit_lines(audit)):
            out.say(line)
        out.document(audits)
        return
    planned = retention_plan(store, settings, policy, ask_registry=not no_registry)
    out.table(
        ("what", "where", "bytes", "why"),
        [(str(one.kind), one.folder, f"{one.bytes:,}", one.why) for one in planned.actions],
        right=("bytes",),
    )
    kinds = Counter(str(one.kind) for one in planned.actions)
    counted = ", ".join(f"{count} x {kind}" for kind, count in kinds.items()) or "nothing to remove"
    out.say(f"{counted}: {planned.bytes:,} bytes")
    for reason, count in planned.kept.items():
        out.say(f"kept in full: {count:,} ({reason})")
    document = {
        "policy": policy.model_dump(),
        "actions": [asdict(one) for one in planned.actions],
        "kept": dict(planned.kept),
        "bytes": planned.bytes,
        "applied": None,
    }
    if applies:
        done = retain(planned, store, settings, why=str(why), ask_registry=not no_registry)
        for line in done.skipped:
            out.say(f"left alone: {line}", style="yellow")
        out.say(f"freed {done.bytes:,} bytes; written down in {done.audit or 'no record'}")
        document["applied"] = asdict(done)
    elif planned.actions:
        out.say("nothing is changed yet: --apply --why '...' does it")
    out.document(document)
