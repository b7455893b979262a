"""The dashboards as code: `python docker/grafana/dashboards.py` writes them to docker/grafana/dashboards/*.json.

Each panel asks what somebody on call would ask; the order is from "are users served" to "what does the process do".
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from grafana_foundation_sdk.builders import heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.dashboard import Dashboard, Row
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import VisibilityMode
from grafana_foundation_sdk.models.dashboard import DataSourceRef
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FOLDER = Path(__file__).parent / "dashboards"
SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")
WIDTH, HEIGHT = 8, 8


class Graph(NamedTuple):
    """A panel of lines over time: expressions by legend."""

    title: str
    about: str
    unit: str
    queries: dict[str, str]


class Heat(NamedTuple):
    """A panel of a histogram's buckets over time."""

    title: str
    about: str
    unit: str
    query: str


class Number(NamedTuple):
    """A panel of one figure."""

    title: str
    about: str
    unit: str
    query: str


Panel = Graph | Heat | Number


def quantiles(series: str, selector: str = "") -> dict[str, str]:
    """p50, p90 and p99 of a histogram."""
    rates = f"sum by (le) (rate({series}_bucket{selector}[$__rate_interval]))"
    return {f"p{share}": f"histogram_quantile({share / 100}, {rates})" for share in (50, 90, 99)}


def mean_stage(stage: str) -> str:
    """Average seconds that an image spends in a stage."""
    selector = f'{{stage="{stage}"}}'
    return (
        f"sum(rate(classify_stage_seconds_sum{selector}[$__rate_interval])) "
        f"/ sum(rate(classify_stage_seconds_count{selector}[$__rate_interval]))"
    )


SERVICE: dict[str, Sequence[Panel]] = {
    "Are users served?": (
        Number(
            "Requests a second", "Classifications, of all kinds.", "reqps", "sum(rate(classify_requests_total[1m]))"
        ),
        Number(
            "Errors of ours",
            "Share of classifications that end in 5xx.",
            "percentunit",
            'sum(rate(classify_requests_total{code=~"5.."}[5m]) or vector(0)) / sum(rate(classify_requests_total[5m]))',
        ),
        Number("Ready replicas", "Replicas whose /health/ready answers 200.", "short", "sum(service_ready)"),
        Graph(
            "Requests by status",
            "Rate of classifications by HTTP status.",
            "reqps",
            {"{{code}}": "sum by (code) (rate(classify_requests_total[$__rate_interval]))"},
        ),
        Graph(
            "Latency",
            "From a request's headers to its answer's first byte.",
            "s",
            quantiles("classify_request_seconds"),
        ),
        Heat(
            "Latency, every request",
            "A second mode is a second kind of request, or a stall.",
            "s",
            "sum by (le) (increase(classify_request_seconds_bucket[$__rate_interval]))",
        ),
    ),
    "Where does the time go?": (
        Graph(
            "Stages",
            "Average time of an image in each stage.",
            "s",
            {stage: mean_stage(stage) for stage in ("decode", "queue", "inference", "respond")},
        ),
        Graph(
            "Queue wait",
            "From decoded to on the device. It grows first when the load does.",
            "s",
            quantiles("classify_stage_seconds", '{stage="queue"}'),
        ),
        Graph(
            "Batch size",
            "Average images in a run, and the largest tenth.",
            "short",
            {
                "average": "sum(rate(classify_batch_size_sum[$__rate_interval])) "
                "/ sum(rate(classify_batch_size_count[$__rate_interval]))",
                "p90": "histogram_quantile(0.9, sum by (le) (rate(classify_batch_size_bucket[$__rate_interval])))",
            },
        ),
    ),
    "How full is it?": (
        Graph(
            "Images inside",
            "Waiting for the device, and admitted in all.",
            "short",
            {"waiting": "sum(classify_queue_depth)", "in flight": "sum(classify_images_in_flight)"},
        ),
        Graph(
            "Device busy",
            "Runs at the same time, on average. At the number of lanes it is saturated.",
            "short",
            {
                "{{instance}}": "sum by (instance) "
                '(rate(classify_stage_seconds_sum{stage="inference"}[$__rate_interval]))'
            },
        ),
        Graph(
            "Refused and failed, by reason",
            "Requests and images without an answer, by error code.",
            "reqps",
            {"{{reason}}": "sum by (reason) (rate(classify_rejected_total[$__rate_interval])) > 0"},
        ),
    ),
}

MODELS: dict[str, Sequence[Panel]] = {
    "What is served": (
        Graph(
            "Versions in service",
            "One line for each version, with its architecture, precision and device.",
            "short",
            {
                "{{model}} {{version}} {{architecture}} {{precision}} {{device}}": "sum by (model, version, "
                "architecture, precision, device) (model_info)"
            },
        ),
        Graph(
            "Requests by version",
            "Which version answers; a canary's share can be read here.",
            "reqps",
            {"{{model}} {{version}}": "sum by (model, version) (rate(classify_requests_total[$__rate_interval]))"},
        ),
        Graph(
            "Golden difference",
            "Largest difference from the trained model's logits at the last load.",
            "short",
            {"{{model}} {{version}}": "max by (model, version) (model_golden_max_abs_diff)"},
        ),
        Graph(
            "Load time",
            "From opening the file to ready.",
            "s",
            {"{{model}} {{version}}": "max by (model, version) (model_load_seconds)"},
        ),
        Graph(
            "Loads that failed",
            "`golden`: it does not answer as it was trained. The version before goes on.",
            "short",
            {"{{model}} {{version}} {{reason}}": "sum by (model, version, reason) (model_load_failures_total)"},
        ),
        Graph(
            "Cost of a batch by its size",
            "As measured at the start; the sizes that are used.",
            "s",
            {
                "{{model}} {{version}}, batches of {{batch_size}}": "max by (model, version, batch_size) "
                "(model_batch_seconds)"
            },
        ),
    ),
    "What it answers": (
        Graph(
            "Predictions by label",
            "The ten most frequent labels.",
            "reqps",
            {
                "{{model}} {{label}}": "topk(10, sum by (model, label) "
                "(rate(classify_predictions_total[$__rate_interval])))"
            },
        ),
        Heat(
            "Confidence",
            "Probability of the first label. A shift to the left often is a change of the images.",
            "percentunit",
            "sum by (le) (increase(classify_confidence_bucket[$__rate_interval]))",
        ),
        Graph(
            "Drift of the labels",
            "Share of predictions that would have to move to be as in the hour before: total variation, 0 to 1.",
            "percentunit",
            {
                "{{model}}": "0.5 * sum by (model) (abs("
                "sum by (model, label) (rate(classify_predictions_total[5m])) "
                "/ on (model) group_left sum by (model) (rate(classify_predictions_total[5m])) "
                "- sum by (model, label) (rate(classify_predictions_total[1h])) "
                "/ on (model) group_left sum by (model) (rate(classify_predictions_total[1h]))))"
            },
        ),
        Graph(
            "Drift of the confidence",
            "Average confidence now, and over the last day.",
            "percentunit",
            {
                "5 minutes": "sum(rate(classify_confidence_sum[5m])) / sum(rate(classify_confidence_count[5m]))",
                "1 day": "sum(rate(classify_confidence_sum[1d])) / sum(rate(classify_confidence_count[1d]))",
            },
        ),
        Graph(
            "Shadow agreement",
            "Share of the images shown to a shadow on which it agreed, of those it answered.",
            "percentunit",
            {
                "{{model}} {{version}}": 'sum by (model, version) (rate(shadow_images_total{result="agreed"}[5m])) / '
                'sum by (model, version) (rate(shadow_images_total{result=~"agreed|disagreed"}[5m]))'
            },
        ),
        Graph(
            "Result cache",
            "Images by what the cache had of them.",
            "reqps",
            {"{{result}}": "sum by (result) (rate(classify_cache_lookups_total[$__rate_interval]))"},
        ),
    ),
}

PROCESS: dict[str, Sequence[Panel]] = {
    "GPU": (
        Graph(
            "GPU memory",
            "Taken, by all processes, of what there is.",
            "percentunit",
            {"{{instance}} GPU {{gpu}}": "gpu_memory_used_bytes / gpu_memory_total_bytes"},
        ),
        Graph(
            "GPU busy",
            "Share of time with a kernel running.",
            "percentunit",
            {"{{instance}} GPU {{gpu}}": "gpu_utilization_ratio"},
        ),
        Graph(
            "Runs that failed",
            "By what the failure means; after hung and lost the process ends.",
            "short",
            {"{{instance}} {{kind}}": "sum by (instance, kind) (increase(device_failures_total[5m]))"},
        ),
    ),
    "Process": (
        Graph(
            "CPU",
            "Cores that the server and its workers, if there are any, have in use.",
            "short",
            {
                "{{instance}}": 'rate(process_cpu_seconds_total{job="classifier"}[$__rate_interval])'
                ' + rate(service_http_worker_cpu_seconds_total{job="classifier"}[$__rate_interval])'
            },
        ),
        Graph(
            "Memory",
            "Resident, with the workers, if there are any; what they share is counted for each.",
            "bytes",
            {
                "{{instance}}": 'process_resident_memory_bytes{job="classifier"}'
                ' + service_http_worker_resident_memory_bytes{job="classifier"}'
            },
        ),
        Graph(
            "File descriptors",
            "Open, of what is allowed.",
            "percentunit",
            {"{{instance}}": 'process_open_fds{job="classifier"} / process_max_fds{job="classifier"}'},
        ),
        Graph(
            "Garbage collections",
            "Of the oldest generation; each holds up every request for a moment.",
            "short",
            {"{{instance}}": 'rate(python_gc_collections_total{job="classifier",generation="2"}[5m]) * 60'},
        ),
        Number(
            "Up since",
            "The youngest process.",
            "dateTimeFromNow",
            'max(process_start_time_seconds{job="classifier"}) * 1000',
        ),
    ),
}

DASHBOARDS = {"service": ("Service", SERVICE), "models": ("Models", MODELS), "process": ("GPU and process", PROCESS)}


def built(panel: Panel) -> Any:
    """The panel in Grafana's terms."""
    if isinstance(panel, Graph):
        return _described(_lines(panel), panel)
    query = prometheus.Dataquery().ref_id("A").expr(panel.query)
    if isinstance(panel, Heat):
        query = query.legend_format("{{le}}").format(PromQueryFormat.HEATMAP)
        return _described(heatmap.Panel().with_target(query), panel)
    return _described(stat.Panel().with_target(query), panel)


def _lines(panel: Graph) -> timeseries.Panel:
    lines = timeseries.Panel().fill_opacity(10).show_points(VisibilityMode.NEVER)
    for letter, (legend, expression) in zip("ABCDEFGH", panel.queries.items(), strict=False):
        lines = lines.with_target(prometheus.Dataquery().ref_id(letter).expr(expression).legend_format(legend))
    return lines


def _described(built_panel: Any, panel: Panel) -> Any:
    described = built_panel.title(panel.title).description(panel.about).unit(panel.unit)
    return described.datasource(SOURCE).span(WIDTH).height(HEIGHT)


def dashboard(uid: str) -> str:
    """The JSON that Grafana reads."""
    title, rows = DASHBOARDS[uid]
    builder = Dashboard(title).uid(uid).tags(["resnet-service"]).refresh("10s").time("now-30m", "now").readonly()
    for heading, panels in rows.items():
        builder = builder.with_row(Row(heading))
        for panel in panels:
            builder = builder.with_panel(built(panel))
    content = _without_nulls(json.loads(json.dumps(builder.build(), cls=JSONEncoder)))
    for number, each in enumerate(content["panels"], start=1):
        each["id"] = number
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _without_nulls(value: Any) -> Any:
    """What the SDK leaves unset it writes as null, which Grafana does not take for unset everywhere."""
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def main() -> None:
    """Write every dashboard."""
    FOLDER.mkdir(exist_ok=True)
    for uid in DASHBOARDS:
        (FOLDER / f"{uid}.json").write_text(dashboard(uid))


if __name__ == "__main__":
    main()
