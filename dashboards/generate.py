#!/usr/bin/env python3
"""Writes the Grafana dashboards, and the runbook's address into the alerts.

    python3 dashboards/generate.py            writes
    python3 dashboards/generate.py --check    fails, naming the files, when one of them is not as it would be written

A page is a list of bands, a band a list of panels beside each other; places follow from widths and heights, so that
no two panels overlap. Every process tells the same of the fleet: that is taken by `max`. What a process counts itself is
summed.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The base of the links from dashboards and alerts into the runbook.
RUNBOOK = "https://github.com/tenantry/tenantry/blob/main/docs/runbook.md"
RULES = ROOT / "manifests/prometheus/tenantry.rules.yaml"
RULE_TESTS = ROOT / "manifests/prometheus/tests"

WIDTH = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
GREEN, AMBER, RED, BLUE = "green", "orange", "red", "blue"
PAGES = ["Fleet", "Upstreams", "Controller"]

# --- expressions ------------------------------------------------------------------------------------------------------

SCOPE = 'namespace="$namespace", job="$job", instance=~"$instance"'
UPSTREAM = 'upstream=~"$upstream"'


def of(metric, *labels):
    """A selector of the processes that the page shows."""
    return f"{metric}{{{', '.join([SCOPE, *labels])}}}"


def rate(metric, *labels, by):
    return f"sum by ({by}) (rate({of(metric, *labels)}[$__rate_interval]))"


def increase(metric, *labels, by, span="$__rate_interval"):
    return f"sum by ({by}) (increase({of(metric, *labels)}[{span}]))"


def most(metric, *labels, by=""):
    return f"max by ({by}) ({of(metric, *labels)})" if by else f"max({of(metric, *labels)})"


def quantiles(metric, *labels, of_them=(0.5, 0.95, 0.99)):
    """Targets for a histogram's quantiles, by one more label where it is asked for."""
    buckets = rate(f"{metric}_bucket", *labels, by="le")
    return [(f"histogram_quantile({q}, {buckets})", f"p{q * 100:g}") for q in of_them]


def quantile_by(q, metric, label, *labels):
    buckets = rate(f"{metric}_bucket", *labels, by=f"le, {label}")
    return [(f"histogram_quantile({q}, {buckets})", f"{{{{{label}}}}}")]


# The buckets of tenants that were active within the objective's 60 seconds.
FAST = 'le=~"60|60[.]0"'


def slow(span):
    """The share of new tenants that were active later than 60 seconds after their creation."""
    metric = "tenantry_time_to_active_seconds"
    fast = f"sum(increase({of(metric + '_bucket', FAST)}[{span}]))"
    return f"1 - {fast} / sum(increase({of(metric + '_count')}[{span}]))"


# --- panels -----------------------------------------------------------------------------------------------------------


def thresholds(*steps):
    """`green, (1, amber), (10, red)`: a colour, and from which values on there is another one."""
    first, *rest = steps
    return {
        "mode": "absolute",
        "steps": [{"value": None, "color": first}] + [{"value": at, "color": color} for at, color in rest],
    }


def panel(kind, title, about, targets, unit, width, height, *, limits=None, custom=None, options, runbook=None, **more):
    if isinstance(targets, str):
        targets = [(targets, "")]
    instant = kind in ("stat", "table")
    made = {
        "type": kind,
        "title": title,
        "description": about,
        "datasource": SOURCE,
        "gridPos": {"h": height, "w": width, "x": 0, "y": 0},
        "targets": [
            {
                "datasource": SOURCE,
                "refId": chr(ord("A") + place),
                "expr": expr,
                "legendFormat": legend,
                "instant": instant,
                "range": not instant,
                "format": "heatmap" if kind == "heatmap" else "table" if kind == "table" else "time_series",
            }
            for place, (expr, legend) in enumerate(targets)
        ],
        "fieldConfig": {
            "defaults": {"unit": unit, "thresholds": limits or thresholds(GREEN), "custom": custom or {}} | more,
            "overrides": [],
        },
        "options": options,
    }
    if runbook:
        link = {"title": f"Runbook: {runbook}", "type": "link", "icon": "doc", "tooltip": "", "tags": []}
        link |= {"url": f"{RUNBOOK}#{runbook.lower()}", "targetBlank": True}
        made["links"] = [link | {"asDropdown": False, "includeVars": False, "keepTime": False}]
    return made


def stat(title, about, expr, unit, limits, *, runbook=None, mappings=(), decimals=None, width=4):
    """A number that reads green, amber or red."""
    options = {
        "colorMode": "background",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "value",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    more = {"mappings": list(mappings), "color": {"mode": "thresholds"}, "noValue": "no data"}
    if decimals is not None:
        more["decimals"] = decimals
    return panel("stat", title, about, expr, unit, width, 4, limits=limits, options=options, runbook=runbook, **more)


def graph(title, about, targets, unit, *, width=8, height=8, stack=False, limits=None, sparse=False):
    """Lines over time; where there are limits, they are drawn. A `sparse` one shows only what is not zero."""
    if sparse:
        targets = [(f"{expr} > 0", name) for expr, name in targets]
    custom = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 40 if stack else 8,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stack else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if limits else "off"},
    }
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    more = {"min": 0, "color": {"mode": "palette-classic"}, "noValue": "none" if sparse else "no data"}
    return panel(
        "timeseries", title, about, targets, unit, width, height, limits=limits, custom=custom, options=options, **more
    )


def timeline(title, about, targets, words, *, width=8, height=8):
    """States over time: `words` gives each value a text and a colour."""
    mapping = {
        "type": "value",
        "options": {
            str(value): {"text": text, "color": color, "index": index}
            for index, (value, (text, color)) in enumerate(words.items())
        },
    }
    options = {
        "showValue": "never",
        "rowHeight": 0.8,
        "mergeValues": True,
        "alignValue": "left",
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    steps = thresholds(*[color if place == 0 else (value, color) for place, (value, (_, color)) in enumerate(words.items())])
    return panel(
        "state-timeline",
        title,
        about,
        targets,
        "none",
        width,
        height,
        limits=steps,
        custom={"fillOpacity": 80, "lineWidth": 0},
        options=options,
        mappings=[mapping],
        color={"mode": "thresholds"},
    )


def heatmap(title, about, expr, unit, *, width=8, height=8):
    options = {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Oranges", "fill": "dark-orange", "exponent": 0.5, "steps": 32}
        | {"reverse": False},
        "filterValues": {"le": 1e-9},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "tooltip": {"mode": "single", "yHistogram": False},
        "legend": {"show": True},
        "yAxis": {"unit": unit, "axisPlacement": "left", "reverse": False},
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
    }
    custom = {"scaleDistribution": {"type": "linear"}, "hideFrom": {"tooltip": False, "viz": False, "legend": False}}
    return panel("heatmap", title, about, [(expr, "{{le}}")], "short", width, height, custom=custom, options=options)


# --- pages ------------------------------------------------------------------------------------------------------------

GOOD_OR_BAD = thresholds(GREEN, (1, RED))
GOOD_OR_WARN = thresholds(GREEN, (1, AMBER))
NOTHING_NEW = {
    "type": "special",
    "options": {"match": "nan", "result": {"text": "none", "color": GREEN, "index": 0}},
}

READY = of("tenantry_tenants_by_ready", 'ready="true"')
BY_READY = of("tenantry_tenants_by_ready")
BY_REASON = of("tenantry_tenants_by_ready", 'ready="false"')
# Only while the breaker is open: a process that has nothing to do after an outage keeps its gauges as they were.
OPEN = "* on (namespace, job, instance, upstream) " + of("tenantry_breaker_state", 'state="open"')
DOWN = f"max by (upstream) ({of('tenantry_upstream_down')} {OPEN})"
REFUSES = f"max by (upstream) (({of('tenantry_integration_healthy')} == bool 0) {OPEN})"
STOPPED = most("tenantry_stopped", by="upstream")
TRIPPED = most("tenantry_guard_tripped", by="upstream")
HELD = f"sum({STOPPED}) + sum({TRIPPED})"

FLEET = [
    (
        None,
        [
            stat(
                "Ready",
                "The share of all tenants that match their desired state now.",
                f"sum(max by (reason) ({READY})) / sum(max by (ready, reason) ({BY_READY}))",
                "percentunit",
                thresholds(RED, (0.9, AMBER), (0.98, GREEN)),
                runbook="TenantryTenantsFailing",
                mappings=[NOTHING_NEW],
            ),
            stat(
                "Failing for long",
                "Tenants that have not been ready for more than 15 minutes, but for those that people hold or delete.",
                most("tenantry_tenants_failing_long"),
                "short",
                thresholds(GREEN, (1, AMBER), (20, RED)),
                runbook="TenantryTenantsStuck",
            ),
            stat(
                "Active too late",
                "The share of those that became active within the last hour that took longer than 60 seconds; at most 1 %.",
                slow("1h"),
                "percentunit",
                thresholds(GREEN, (0.01, AMBER), (0.06, RED)),
                runbook="TenantryErrorBudgetBurnsFast",
                mappings=[NOTHING_NEW],
                decimals=1,
            ),
            stat(
                "Oldest due",
                "How long the tenant that waits the longest for its reconcile has been due.",
                most("tenantry_oldest_due_age_seconds"),
                "s",
                thresholds(GREEN, (120, AMBER), (600, RED)),
                runbook="TenantryOldestDueTooOld",
            ),
            stat(
                "Upstreams away",
                "Upstreams that are down, or refuse our credentials or address.",
                f"sum({DOWN} + {REFUSES} > bool 0)",
                "short",
                GOOD_OR_BAD,
                runbook="TenantryUpstreamDown",
            ),
            stat(
                "Held",
                "Stops and tripped change guards, by upstream: writes rest there until a person resumes.",
                HELD,
                "short",
                GOOD_OR_WARN,
                runbook="TenantryChangeGuardTripped",
            ),
        ],
    ),
    (
        "Tenants",
        [
            graph(
                "Tenants, by status",
                "All tenants: pending until every step was ok once, then active, deleting when they are to go.",
                [(most("tenantry_tenants", by="status"), "{{status}}")],
                "short",
                stack=True,
            ),
            graph(
                "Not ready, by reason",
                "Tenants that do not match their desired state now, by the first reason why.",
                [(f"max by (reason) ({BY_REASON})", "{{reason}}")],
                "short",
                stack=True,
                sparse=True,
            ),
            graph(
                "Steps in error, by upstream",
                "Steps whose latest attempt failed, by the upstream that they concern.",
                [(most("tenantry_steps", 'state="error"', by="upstream"), "{{upstream}}")],
                "short",
            ),
            timeline(
                "Upstreams",
                "Whether each upstream is away (red), held by a stop or a change guard (amber) or well (green).",
                [
                    (
                        f"2 * clamp_max({DOWN} + {REFUSES}, 1) > 0 or (clamp_max({STOPPED} + {TRIPPED}, 1) and {DOWN})",
                        "{{upstream}}",
                    )
                ],
                {0: ("well", GREEN), 1: ("held", AMBER), 2: ("away", RED)},
                width=12,
                height=6,
            ),
            timeline(
                "Alerts",
                "Alerts that fire (red) or are pending (amber), where Prometheus evaluates the rules.",
                [
                    (
                        'max by (alertname, upstream) (ALERTS{alertname=~"Tenantry.+", namespace="$namespace", job="$job", '
                        'alertstate="firing"} * 2 or on (alertname, upstream) '
                        'ALERTS{alertname=~"Tenantry.+", namespace="$namespace", job="$job", alertstate="pending"})',
                        "{{alertname}} {{upstream}}",
                    )
                ],
                {1: ("pending", AMBER), 2: ("fires", RED)},
                width=12,
                height=6,
            ),
        ],
    ),
    (
        "New and edited tenants",
        [
            graph(
                "Time until active",
                "From a tenant's creation until every step was ok once; the objective is 60 seconds for 99 %.",
                quantiles("tenantry_time_to_active_seconds"),
                "s",
                limits=thresholds("transparent", (60, RED)),
            ),
            graph(
                "Became active",
                "Tenants that became active in each interval, and those of them that took longer than 60 seconds.",
                [
                    (f"sum(increase({of('tenantry_time_to_active_seconds_count')}[$__rate_interval]))", "all"),
                    (
                        f"sum(increase({of('tenantry_time_to_active_seconds_count')}[$__rate_interval])) - sum(increase("
                        f"{of('tenantry_time_to_active_seconds_bucket', FAST)}[$__rate_interval]))",
                        "too slow",
                    ),
                ],
                "short",
            ),
            graph(
                "Time until ready after an edit",
                "From an edit through the API until the tenant was ready again.",
                quantiles("tenantry_time_to_ready_seconds"),
                "s",
            ),
        ],
    ),
    (
        "Work that waits",
        [
            graph(
                "Due tenants",
                "Tenants whose time for a reconcile has come and that no process has finished yet.",
                [(most("tenantry_tenants_due"), "due")],
                "short",
            ),
            graph(
                "Oldest due",
                "How long the tenant that waits the longest has been due; 10 minutes are too long.",
                [(most("tenantry_oldest_due_age_seconds"), "age")],
                "s",
                limits=thresholds("transparent", (600, RED)),
            ),
            graph(
                "Reconciles",
                "Claims of tenants by how they ended, a second.",
                [(rate("tenantry_reconciles_total", by="result"), "{{result}}")],
                "ops",
                sparse=True,
            ),
        ],
    ),
    (
        "Drift",
        [
            graph(
                "Drift found",
                "Differences that sweeps found in each interval, by upstream and by what differs.",
                [(increase("tenantry_drift_found_total", by="upstream, differs"), "{{upstream}}: {{differs}}")],
                "short",
                stack=True,
                sparse=True,
            ),
            graph(
                "Repairs",
                "Resources that were repaired, recreated or restored, and repairs that a change guard refused.",
                [
                    (
                        increase("tenantry_acts_total", 'act=~"repaired|recreated|restored"', by="upstream, act") + " > 0",
                        "{{upstream}}: {{act}}",
                    ),
                    (increase("tenantry_repairs_refused_total", by="upstream"), "{{upstream}}: refused"),
                ],
                "short",
                stack=True,
            ),
            graph(
                "Age of drift",
                "When drift was found: time since the resource was last seen as it should be.",
                quantiles("tenantry_drift_age_seconds", of_them=(0.5, 0.95)),
                "s",
            ),
        ],
    ),
    (
        "Deletions",
        [
            graph(
                "Tenants that are to go",
                "Tenants whose deletion was asked for and that are not gone yet.",
                [(most("tenantry_tenants", 'status="deleting"'), "deleting")],
                "short",
            ),
            graph(
                "Time until gone",
                "From the request for a deletion until the document was gone.",
                quantiles("tenantry_time_to_delete_seconds", of_them=(0.5, 0.95)),
                "s",
            ),
            graph(
                "Resources let go",
                "Resources that were released, disabled or deleted in each interval.",
                [(increase("tenantry_acts_total", 'act=~"released|disabled|deleted"', by="upstream, act"), "{{upstream}}: {{act}}")],
                "short",
                stack=True,
                sparse=True,
            ),
        ],
    ),
]

AGE = f"time() - {most('tenantry_sweep_last_success_timestamp_seconds', by='upstream')}"
UNPROVEN = of("tenantry_breaker_state", UPSTREAM, 'state="unproven"')
OPENED = of("tenantry_breaker_state", UPSTREAM, 'state="open"')
REQUESTS = "tenantry_upstream_request_duration_seconds"

UPSTREAMS = [
    (
        None,
        [
            stat("Down", "Upstreams that a process takes to be down.", f"sum({DOWN})", "short", GOOD_OR_BAD, runbook="TenantryUpstreamDown"),
            stat(
                "Refusing us",
                "Upstreams that refuse our credentials, or whose address or certificate is wrong.",
                f"sum({REFUSES})",
                "short",
                GOOD_OR_BAD,
                runbook="TenantryCredentialsRejected",
            ),
            stat(
                "Missing permissions",
                "Permissions that our accounts in the upstreams lack.",
                f"sum({most('tenantry_integration_missing_permissions', by='upstream')})",
                "short",
                GOOD_OR_WARN,
                runbook="TenantryPermissionMissing",
            ),
            stat(
                "Guards tripped",
                "Upstreams in which more has changed at once than is believed, so that repairs rest.",
                f"sum({most('tenantry_guard_tripped', by='upstream')})",
                "short",
                GOOD_OR_BAD,
                runbook="TenantryChangeGuardTripped",
            ),
            stat(
                "Oldest sweep",
                "How long ago the upstream that waits the longest was last compared with the fleet.",
                f"max({AGE})",
                "s",
                thresholds(GREEN, (1800, AMBER), (3600, RED)),
                runbook="TenantrySweepsLate",
            ),
            stat(
                "Orphans",
                "Resources marked for tenants that do not exist, as the latest sweeps of each process saw them.",
                f"sum({most('tenantry_orphans', by='upstream')}) or vector(0)",
                "short",
                GOOD_OR_WARN,
                runbook="TenantryOrphansFound",
            ),
        ],
    ),
    (
        "$upstream",
        [
            graph(
                "Requests, by status",
                "Requests to the upstream a second, by status or by what kept it from having one.",
                [(rate(f"{REQUESTS}_count", UPSTREAM, by="status"), "{{status}}")],
                "reqps",
                width=6,
            ),
            graph(
                "Latency",
                "How long requests to the upstream took.",
                quantiles(REQUESTS, UPSTREAM),
                "s",
                width=6,
            ),
            graph(
                "Latency, by operation",
                "The 95th percentile of each operation: the one that is slow stands out.",
                quantile_by(0.95, REQUESTS, "operation", UPSTREAM),
                "s",
                width=6,
            ),
            graph(
                "Failed runs, by reason",
                "Runs of the step that failed in each interval, by reason.",
                [(increase("tenantry_step_errors_total", UPSTREAM, by="reason"), "{{reason}}")],
                "short",
                width=6,
                stack=True,
                sparse=True,
            ),
            timeline(
                "Health",
                "Whether the upstream works for each process, is taken to be down, or refuses us.",
                [
                    (
                        f"max by (instance) (({of('tenantry_upstream_down', UPSTREAM)} "
                        f"+ 2 * ({of('tenantry_integration_healthy', UPSTREAM)} == bool 0)) {OPEN})",
                        "{{instance}}",
                    )
                ],
                {0: ("works", GREEN), 1: ("down", RED), 2: ("refuses us", "purple")},
                width=6,
            ),
            timeline(
                "Breaker",
                "Whether each process lets steps through: closed lets all, unproven one at a time, open none.",
                [
                    (
                        f"max by (instance) ({UNPROVEN} + ignoring (state) 2 * {OPENED})",
                        "{{instance}}",
                    )
                ],
                {0: ("closed", GREEN), 1: ("unproven", AMBER), 2: ("open", RED)},
                width=6,
            ),
            graph(
                "Runs of the step, by outcome",
                "Runs a second: held by a person or a guard, paced by the upstream, or worked on.",
                [(rate("tenantry_step_duration_seconds_count", UPSTREAM, by="outcome"), "{{outcome}}")],
                "ops",
                width=6,
                stack=True,
            ),
            graph(
                "Backoff",
                "How long failed steps wait until they are tried again.",
                quantiles("tenantry_backoff_delay_seconds", UPSTREAM, of_them=(0.5, 0.95)),
                "s",
                width=6,
            ),
            graph(
                "Sweeps",
                "Sweeps that ended in each interval, by how.",
                [(increase("tenantry_sweeps_total", UPSTREAM, by="result"), "{{result}}")],
                "short",
                width=6,
                height=6,
            ),
            graph(
                "Age of the latest sweep",
                "How long ago any process last compared the upstream with the fleet; an hour is too long.",
                [(f"time() - {most('tenantry_sweep_last_success_timestamp_seconds', UPSTREAM, by='upstream')}", "age")],
                "s",
                width=6,
                height=6,
                limits=thresholds("transparent", (3600, RED)),
            ),
            graph(
                "Time of a sweep",
                "How long listing the upstream and comparing it took.",
                quantiles("tenantry_sweep_duration_seconds", UPSTREAM, of_them=(0.5, 0.95)),
                "s",
                width=6,
                height=6,
            ),
            graph(
                "Seen, orphaned, foreign",
                "Resources that the latest sweep of each process saw, and marks without a tenant or of another fleet.",
                [
                    (most("tenantry_sweep_seen", UPSTREAM, by="upstream"), "seen"),
                    (most("tenantry_orphans", UPSTREAM, by="upstream"), "orphans"),
                    (most("tenantry_foreign_marks", UPSTREAM, by="upstream"), "of another fleet"),
                ],
                "short",
                width=6,
                height=6,
            ),
        ],
    ),
    (
        "All upstreams",
        [
            graph(
                "Access tokens",
                "Access tokens that were asked for, by upstream and whether that worked.",
                [(increase("tenantry_token_refreshes_total", by="upstream, result"), "{{upstream}}: {{result}}")],
                "short",
                height=6,
            ),
            graph(
                "Not understood",
                "Elements of lists that could not be understood; they are never taken for absent.",
                [(increase("tenantry_unreadable_elements_total", by="upstream"), "{{upstream}}")],
                "short",
                height=6,
            ),
            graph(
                "Second spaces put out of use",
                "Spaces that a request applied late had made, and that were disabled.",
                [(f"sum(increase({of('tenantry_twins_disabled_total')}[$__rate_interval]))", "disabled")],
                "short",
                height=6,
            ),
        ],
    ),
]

HTTP = "tenantry_http_request_duration_seconds"
OURS = of(f"{HTTP}_count", 'status=~"5.."')
MONGO = "tenantry_mongodb_command_duration_seconds"

CONTROLLER = [
    (
        None,
        [
            stat(
                "Processes",
                "Processes that answer scrapes.",
                f"count({of('tenantry_build_info')}) or vector(0)",
                "short",
                thresholds(RED, (1, GREEN)),
                runbook="TenantryAbsent",
            ),
            stat(
                "Without a database",
                "Processes that know no server of MongoDB that takes writes.",
                f"sum({of('tenantry_mongodb_up')} == bool 0)",
                "short",
                GOOD_OR_BAD,
                runbook="TenantryDatabaseUnreachable",
            ),
            stat(
                "Without a change stream",
                "Processes whose change stream is closed: edits past the API are found later.",
                f"sum({of('tenantry_watch_open')} == bool 0)",
                "short",
                GOOD_OR_WARN,
                runbook="TenantryChangeStreamClosed",
            ),
            stat(
                "Workers busy",
                "The share of all workers that run a reconcile now.",
                f"sum({of('tenantry_workers_busy')}) / sum({of('tenantry_workers')})",
                "percentunit",
                thresholds(GREEN, (0.8, AMBER), (1, RED)),
                runbook="TenantryBacklogGrowing",
            ),
            stat(
                "Failed requests",
                "The share of the API's answers within the last 15 minutes that are errors of ours (5xx).",
                f"(sum(rate({OURS}[15m])) or vector(0)) / sum(rate({of(HTTP + '_count')}[15m]))",
                "percentunit",
                thresholds(GREEN, (0.001, AMBER), (0.01, RED)),
                runbook="TenantryDatabaseUnreachable",
                mappings=[NOTHING_NEW],
                decimals=1,
            ),
            stat(
                "Restarts and panics",
                "Starts of processes and panics within the last hour, of the processes that run now.",
                f"sum(changes({of('process_start_time_seconds')}[1h])) + (sum(increase({of('tenantry_panics_total')}[1h])) or vector(0))",
                "short",
                thresholds(GREEN, (1, AMBER), (4, RED)),
                runbook="TenantryProcessRestarting",
                decimals=0,
            ),
        ],
    ),
    (
        "Queue and workers",
        [
            graph(
                "Queue, by priority",
                "Tenants that wait for a worker, over all processes.",
                [(f"sum by (priority) ({of('tenantry_queue_depth')})", "{{priority}}")],
                "short",
                width=6,
                stack=True,
            ),
            graph(
                "Wait for a worker",
                "The 95th percentile of the time that a tenant waited for a worker, by priority.",
                quantile_by(0.95, "tenantry_queue_wait_seconds", "priority"),
                "s",
                width=6,
            ),
            graph(
                "First in line",
                "How long the first tenant in line has waited, by priority.",
                [(most("tenantry_queue_oldest_age_seconds", by="priority"), "{{priority}}")],
                "s",
                width=6,
            ),
            graph(
                "Workers",
                "Reconciles that run, and how many may, over all processes.",
                [(f"sum({of('tenantry_workers_busy')})", "busy"), (f"sum({of('tenantry_workers')})", "all")],
                "short",
                width=6,
            ),
            graph(
                "Time of a reconcile",
                "From claim to commit.",
                quantiles("tenantry_reconcile_duration_seconds"),
                "s",
                width=6,
            ),
            heatmap(
                "Time of a reconcile, spread",
                "How many reconciles took how long, from claim to commit.",
                f"sum by (le) (increase({of('tenantry_reconcile_duration_seconds_bucket')}[$__rate_interval]))",
                "s",
                width=6,
            ),
            graph(
                "Leases",
                "Leases that went to another process before the commit, and those taken over from one that ended.",
                [
                    (f"sum(increase({of('tenantry_claims_lost_total')}[$__rate_interval]))", "lost"),
                    (f"sum(increase({of('tenantry_leases_taken_over_total')}[$__rate_interval]))", "taken over"),
                ],
                "short",
                width=6,
            ),
            graph(
                "Overflows and panics",
                "Times that hints found the queue full, and panics that were caught.",
                [
                    (f"sum(increase({of('tenantry_queue_overflows_total')}[$__rate_interval]))", "queue full"),
                    (increase("tenantry_panics_total", by="place"), "panic: {{place}}"),
                ],
                "short",
                width=6,
            ),
        ],
    ),
    (
        "Change stream",
        [
            timeline(
                "Change stream",
                "Whether each process has an open change stream.",
                [(most("tenantry_watch_open", by="instance"), "{{instance}}")],
                {0: ("closed", RED), 1: ("open", GREEN)},
                width=6,
            ),
            graph(
                "Events",
                "Events that the change streams brought, a second.",
                [(rate("tenantry_watch_events_total", by="instance"), "{{instance}}")],
                "ops",
                width=6,
            ),
            graph(
                "Lag",
                "How old the latest event was when it was read.",
                [(most("tenantry_watch_lag_seconds", by="instance"), "{{instance}}")],
                "s",
                width=6,
            ),
            graph(
                "Opened again, and relists",
                "Change streams that had to be opened again, by cause, and passes over all tenants after a gap.",
                [
                    (increase("tenantry_watch_restarts_total", by="cause"), "{{cause}}"),
                    (f"sum(increase({of('tenantry_relists_total')}[$__rate_interval]))", "relist"),
                ],
                "short",
                width=6,
            ),
        ],
    ),
    (
        "MongoDB",
        [
            graph(
                "Commands",
                "Commands sent to MongoDB a second, by command.",
                [(rate("tenantry_mongodb_commands_total", by="command"), "{{command}}")],
                "ops",
                width=6,
            ),
            graph(
                "Commands, 99th percentile",
                "How long commands took; a getMore of the change stream waits on purpose.",
                quantile_by(0.99, MONGO, "command", 'command!="getMore"'),
                "s",
                width=6,
            ),
            graph(
                "Failed commands",
                "Commands that failed in each interval, by command.",
                [(increase(f"{MONGO}_count", 'result="failed"', by="command"), "{{command}}")],
                "short",
                width=6,
            ),
            graph(
                "Lost events and documents",
                "Events that histories lost, invalid documents, and documents that others deleted.",
                [
                    (f"sum(increase({of('tenantry_events_dropped_total')}[$__rate_interval]))", "events dropped"),
                    (f"sum(increase({of('tenantry_invalid_documents_total')}[$__rate_interval]))", "invalid documents"),
                    (f"sum(increase({of('tenantry_vanished_total')}[$__rate_interval]))", "documents deleted by others"),
                ],
                "short",
                width=6,
            ),
        ],
    ),
    (
        "HTTP",
        [
            graph(
                "Requests, by status",
                "Requests to the API a second, by status.",
                [(rate(f"{HTTP}_count", by="status"), "{{status}}")],
                "reqps",
                width=6,
                stack=True,
            ),
            graph(
                "Latency, by route",
                "The 95th percentile of each route; with Prefer: wait an answer is late on purpose.",
                quantile_by(0.95, HTTP, "route"),
                "s",
                width=6,
            ),
            graph(
                "Refused",
                "Requests that were refused before anything was done: over a limit, without a good token or role.",
                [(increase("tenantry_http_refusals_total", by="cause"), "{{cause}}")],
                "short",
                width=6,
            ),
            graph(
                "Issuers' keys",
                "Times that an issuer was asked for its keys, by whether that worked.",
                [(increase("tenantry_jwks_refreshes_total", by="result"), "{{result}}")],
                "short",
                width=6,
            ),
        ],
    ),
    (
        "Processes",
        [
            graph(
                "Memory",
                "Resident memory of each process.",
                [(most("process_resident_memory_bytes", by="instance"), "{{instance}}")],
                "bytes",
                width=6,
            ),
            graph(
                "CPU",
                "Processor time that each process uses, in cores.",
                [(rate("process_cpu_seconds_total", by="instance"), "{{instance}}")],
                "short",
                width=6,
            ),
            graph(
                "Open files",
                "File descriptors that each process has open, connections among them.",
                [(most("process_open_fds", by="instance"), "{{instance}}")],
                "short",
                width=6,
            ),
            graph(
                "Uptime, by version",
                "How long each process has run, and its version.",
                [
                    (
                        f"time() - max by (instance, version) ({of('process_start_time_seconds')} "
                        f"* on (namespace, job, instance) group_left (version) {of('tenantry_build_info')})",
                        "{{instance}} {{version}}",
                    )
                ],
                "s",
                width=6,
            ),
        ],
    ),
]

# --- a page -----------------------------------------------------------------------------------------------------------


def placed(bands):
    """Panels and rows with their places; a row whose title is a variable is repeated for each of its values."""
    panels, top = [], 0
    for title, band in bands:
        if title:
            row = {"type": "row", "title": title, "collapsed": False, "panels": []}
            row["gridPos"] = {"h": 1, "w": WIDTH, "x": 0, "y": top}
            if title.startswith("$"):
                row["repeat"] = title[1:]
            panels.append(row)
            top += 1
        left, height = 0, 0
        for it in band:
            place = it["gridPos"]
            if left + place["w"] > WIDTH:
                left, top, height = 0, top + height, 0
            panels.append(it | {"gridPos": place | {"x": left, "y": top}})
            left, height = left + place["w"], max(height, place["h"])
        top += height
    return [it | {"id": number} for number, it in enumerate(panels, 1)]


def choice(name, label, query, *, several=False):
    made = {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "multi": several,
        "includeAll": several,
        "regex": "",
        "options": [],
        "skipUrlSync": False,
    }
    if several:
        made |= {"allValue": ".*", "current": {"selected": True, "text": "All", "value": "$__all"}}
    return made


def page(title, about, bands):
    inside = 'tenantry_build_info{namespace="$namespace"'
    source = {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus", "refresh": 1}
    source |= {"hide": 0, "multi": False, "includeAll": False, "regex": "", "options": [], "skipUrlSync": False}
    variables = [
        source,
        choice("namespace", "Namespace", "label_values(tenantry_build_info, namespace)"),
        choice("job", "Job", f"label_values({inside}}}, job)"),
        choice("instance", "Instance", f'label_values({inside}, job="$job"}}, instance)', several=True),
    ]
    if title == "Upstreams":
        query = 'label_values(tenantry_integration_healthy{namespace="$namespace", job="$job"}, upstream)'
        variables.append(choice("upstream", "Upstream", query, several=True))
    link = {"asDropdown": False, "includeVars": True, "keepTime": True, "tags": [], "tooltip": "", "icon": "dashboard"}
    others = [
        link | {"title": f"tenantry / {other}", "type": "link", "url": f"/d/tenantry-{other.lower()}", "targetBlank": False}
        for other in PAGES
        if other != title
    ]
    runbook = link | {"title": "Runbook", "type": "link", "url": RUNBOOK, "icon": "doc", "targetBlank": True}
    return {
        "uid": f"tenantry-{title.lower()}",
        "title": f"tenantry / {title}",
        "description": about,
        "tags": ["tenantry"],
        "schemaVersion": 39,
        "timezone": "browser",
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "links": others + [runbook | {"includeVars": False, "keepTime": False}],
        "templating": {"list": variables},
        "annotations": {"list": []},
        "panels": placed(bands),
    }


def written():
    """Every file that is written from here, and its text."""
    pages = {
        "fleet": page("Fleet", "How the tenants are: ready, new, waiting, drifting, going.", FLEET),
        "upstreams": page("Upstreams", "How each upstream is, and what tenantry does there.", UPSTREAMS),
        "controller": page("Controller", "How the processes are: queue, database, API.", CONTROLLER),
    }
    files = {
        ROOT / f"dashboards/{name}.json": json.dumps(made, indent=2, ensure_ascii=False) + "\n"
        for name, made in pages.items()
    }
    for path in [RULES, *sorted(RULE_TESTS.glob("*.yaml"))]:
        files[path] = re.sub(r"(runbook_url: )[^#\s]+#", rf"\g<1>{RUNBOOK}#", path.read_text(encoding="utf-8"))
    return files


def main():
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        sys.exit(__doc__)
    stale = []
    for path, text in written().items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(str(path.relative_to(ROOT)))
        if not check:
            path.write_text(text, encoding="utf-8")
    if check and stale:
        sys.exit(f"not as dashboards/generate.py writes them: {', '.join(stale)}")


main()
