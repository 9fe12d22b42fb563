"""A W&B workspace for a debiasing study: `python -m debias.jobs.dashboard ENTITY PROJECT`, once per project.

Its sections ask the questions of a study in order: did bias fall, at what price, can it be trusted, how was it trained?
"""

from __future__ import annotations

import sys
from typing import Any

from debias.jobs.tracking import missing
from debias.records import UserError

USAGE = "python -m debias.jobs.dashboard ENTITY PROJECT"


def workspace(entity: str, project: str) -> Any:
    """The workspace with its panels; only `.save()` sends it. Raises UserError if the extra is not installed."""
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as pages
    except ModuleNotFoundError as error:
        raise missing("dashboard") from error

    def figure(name: str, model: str = "debiased", end: str = "") -> Any:
        return panels.SummaryMetric(f"headline/{name}/{model}{end}")

    def bars(title: str, name: str, model: str) -> Any:
        ends: list[Any] = [panels.Metric(f"headline/{name}/{model}{end}") for end in ("_low", "", "_high")]
        return panels.BarPlot(title=title, metrics=ends, max_runs_to_show=50)

    def against(title: str, name: str) -> Any:
        return panels.ScatterPlot(title=title, x=figure(name), y=figure("SS"))

    def column(metric: Any, name: str) -> Any:
        return panels.ParallelCoordinatesPlotColumn(metric=metric, display_name=name)

    choices = [("training.lr", "lr"), ("training.retention", "retention"), ("data.n", "sentences"), ("seed", "seed")]
    sections = [
        pages.Section(
            name="Did bias fall?",
            is_open=True,
            panels=[
                bars("SS after, with 95% interval (50 is unbiased)", "SS", "debiased"),
                bars("Change of SS, with 95% interval", "SS", "delta"),
                bars("ICAT after", "ICAT", "debiased"),
            ],
        ),
        pages.Section(
            name="At what price?",
            is_open=True,
            panels=[
                against("Bias and language-modelling score", "LMS"),
                against("Bias and perplexity: the frontier", "perplexity"),
                bars("Change of LMS, with 95% interval", "LMS", "delta"),
            ],
        ),
        pages.Section(
            name="Can it be trusted?",
            panels=[
                panels.WeavePanelSummaryTable(table_name="figures"),
                panels.WeavePanelSummaryTable(table_name="most_changed"),
                panels.WeavePanelSummaryTable(table_name="least_changed"),
                panels.MediaBrowser(title="Report pages", media_keys=["report"]),
                panels.RunComparer(),
            ],
        ),
        pages.Section(
            name="How was it trained?",
            panels=[
                panels.LinePlot(title="Loss", x="trainer/global_step", y=["loss"], smoothing_factor=0.6),
                panels.LinePlot(title="Mean loss of an epoch", x="epoch", y=["epoch_loss"]),
                panels.ParallelCoordinatesPlot(
                    title="Choices and outcome",
                    columns=[
                        *(column(panels.Config(key), name) for key, name in choices),
                        *(column(figure(name), name) for name in ("SS", "LMS", "perplexity", "ICAT")),
                    ],
                ),
                panels.ParameterImportancePlot(with_respect_to="headline/ICAT/debiased"),
            ],
        ),
    ]
    return pages.Workspace(entity=entity, project=project, name="Debiasing study", sections=sections)


def main() -> None:
    """Create the workspace in a project and print its address."""
    if len(sys.argv) != 3:
        sys.exit(f"usage: {USAGE}")
    try:
        page = workspace(*sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
    page.save()
    print(page.url)


if __name__ == "__main__":
    main()
