"""The report as a page of W&B: what the local page says, beside the runs that it comes from.

wandb-workspaces is an optional extra (`pip install topi[wandb-report]`). All that needs a server is
in `publish`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topi.bench.report.paper.build import Drawn, Paper, build_paper
from topi.bench.report.paper.claims.claims_text import claims_markdown
from topi.bench.report.tables.text_table import to_markdown
from topi.bench.results.store import Store
from topi.bench.tracking.sync import wandb_mode
from topi.errors import ToPiError

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as wr

FIGURES = "figures/"
"""Keys of the figures in the run that holds them start with this."""


def place(text: str) -> tuple[str, str]:
    """Entity and project of `ENTITY/PROJECT`.

    Raises:
        ToPiError: it is not of that form.
    """
    entity, _, project = text.partition("/")
    if not entity or not project or "/" in project:
        raise ToPiError(f"--wandb takes ENTITY/PROJECT, not {text!r}.")
    return entity, project


def groups_of(store: Store) -> list[str]:
    """The groups that the mirror put the cells' runs into: experiments, else models."""
    cells = store.load_cells()
    return sorted({c.manifest.get("experiment") or c.manifest["model"] for c in cells})


def wandb_report(paper: Paper, groups: Sequence[str], entity: str, project: str) -> wr.Report:
    """Claims, tables, figures and the runs behind them as a W&B report; nothing is sent.

    Raises:
        ToPiError: wandb-workspaces is not installed.
    """
    wr = _reports()
    return wr.Report(
        entity=entity,
        project=project,
        title="ToPi: token pruning for in-context generation",
        description="The paper's claims, tables and figures, beside what was measured.",
        width="fluid",
        blocks=[
            wr.TableOfContents(),
            wr.H1("Claims"),
            wr.MarkdownBlock(claims_markdown(paper.judged)),
            wr.H1("Tables"),
            *(wr.MarkdownBlock(to_markdown(table)) for table in paper.tables),
            wr.H1("Figures"),
            *(_figure(wr, drawn, entity, project) for drawn in paper.figures),
            *(wr.P(sentence) for sentence in paper.missing),
            wr.H1("Runs"),
            *(_runs(wr, group, entity, project) for group in groups),
        ],
    )


def publish(store_root: Path | str, out: Path | str, where: str) -> str:
    """Build the paper, upload its figures as a run and save the report.

    Args:
        where: ENTITY/PROJECT.

    Returns:
        The address of the report.

    Raises:
        ToPiError: a bad place, no wandb-workspaces, or W&B refused (no login, no network).
    """
    entity, project = place(where)
    if (mode := wandb_mode("online")) != "online":
        raise ToPiError(f"A report of W&B needs a server, but WANDB_MODE says {mode}: unset it.")
    _reports()  # before anything is built
    paper = build_paper(store_root, out)
    report = wandb_report(paper, groups_of(Store(store_root)), entity, project)
    try:
        _upload(paper.figures, entity, project)
        report.save()
    except Exception as error:
        raise ToPiError(
            f"W&B did not take the report ({error}). Log in with `wandb login`, on a machine with "
            f"internet; the same report is in {out}."
        ) from error
    return report.url


def _reports() -> Any:
    try:
        import wandb_workspaces.reports.v2 as wr
    except ImportError as error:
        raise ToPiError(
            "W&B reports need wandb-workspaces: pip install 'topi[wandb-report]'."
        ) from error
    return wr


def _upload(figures: Sequence[Drawn], entity: str, project: str) -> None:
    import wandb

    with wandb.init(
        entity=entity, project=project, id="report", job_type="report", resume="allow"
    ) as run:
        run.log({key_of(d): wandb.Image(str(d.path), caption=d.caption) for d in figures})


def key_of(drawn: Drawn) -> str:
    """Under which key of its run a figure is found."""
    return f"{FIGURES}{drawn.path.stem}"


def _figure(wr: Any, drawn: Drawn, entity: str, project: str) -> wr.PanelGrid:
    runs = _runset(wr, "report", "JobType", entity, project)
    panel = wr.MediaBrowser(
        title=drawn.title,
        media_keys=[key_of(drawn)],
        num_columns=1,
        layout=wr.Layout(w=24 if drawn.wide else 12, h=14),
    )
    return wr.PanelGrid(runsets=[runs], panels=[panel], hide_run_sets=True)


def _runs(wr: Any, group: str, entity: str, project: str) -> wr.PanelGrid:
    return wr.PanelGrid(
        runsets=[_runset(wr, group, "Group", entity, project)],
        panels=[
            wr.ScatterPlot(
                title=f"{group}: quality over speed",
                x=wr.SummaryMetric("mean/flop_speedup"),
                y=wr.SummaryMetric("mean/psnr"),
                layout=wr.Layout(w=8, h=8),
            ),
            wr.LinePlot(
                title="Share of reference tokens kept",
                x="kept/step",
                y=["kept/keep_ratio"],
                layout=wr.Layout(x=8, w=8, h=8),
            ),
            wr.MediaBrowser(
                title="reference | full | method | kept",
                media_keys=["pictures"],
                layout=wr.Layout(x=16, w=8, h=8),
            ),
        ],
    )


def _runset(wr: Any, name: str, field: str, entity: str, project: str) -> wr.Runset:
    """The runs of which a field (Group, JobType) says `name`."""
    from wandb_workspaces import expr

    wanted = [expr.Metric(field) == name]
    return wr.Runset(entity=entity, project=project, name=name, filters=wanted)
