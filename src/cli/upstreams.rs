//! The commands `tenantry upstreams …`: how the upstreams are, and the end of one for the fleet.

use clap::{Args, Subcommand};
use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};

use super::List;
use super::client::{Ask, Client};
use super::failure::Failure;
use super::show::{self, Form};
use super::table::{age, cell};

#[derive(Debug, Args)]
pub struct Upstreams {
    #[command(flatten)]
    list: List,
    #[command(subcommand)]
    command: Option<UpstreamsCommand>,
}

#[derive(Debug, Subcommand)]
enum UpstreamsCommand {
    /// Ask an upstream now, with what its secrets' files hold now, and say what was found
    #[command(after_help = "\
Needs the role operator. Credentials that are refused and still the same are not tried before their next
probe is due: an upstream may ban an address for failed logins. Exits with 1 when the upstream is not well.

Example:
  tenantry upstreams check stalwart")]
    Check {
        #[arg(value_parser = ["authentik", "stalwart", "ocis"])]
        upstream: String,
    },
    /// End an upstream for the fleet: its steps are skipped, what is there stays, deletions no longer wait
    #[command(after_help = "\
Needs the role admin. Remove the upstream's address from the settings of every process first; a process
that is started with it takes the upstream back.

Example:
  tenantry upstreams retire stalwart")]
    Retire {
        #[arg(value_parser = ["authentik", "stalwart", "ocis"])]
        upstream: String,
    },
}

const COLUMNS: [(&str, &str); 11] = [
    ("UPSTREAM", "upstream"),
    ("FLEET", "fleet"),
    ("HEALTH", "health"),
    ("VERSION", "version"),
    ("BREAKER", "breaker"),
    ("NEXT PROBE", "nextProbeAt"),
    ("ACCEPTED", "credentialsAcceptedAt"),
    ("P95", "p95"),
    ("REQUESTS", "requests"),
    ("SWEPT", "swept"),
    ("MESSAGE", "message"),
];

impl Upstreams {
    pub async fn run(self) -> Result<String, Failure> {
        let Self { list: List { connection, output }, command } = self;
        let client = Client::new(&connection).await?;
        match command {
            Some(UpstreamsCommand::Check { upstream }) => return check(&client, &upstream).await,
            Some(UpstreamsCommand::Retire { upstream }) => {
                let path = ["upstreams", &upstream, "retire"];
                client.ask(Ask::new(Method::POST, &path, "way to retire upstreams")).await?;
                return Ok(format!("{upstream}: is retired; its steps are skipped from now on\n"));
            }
            None => {}
        }
        let answer = client.ask(Ask::get(&["upstreams"], "view of the upstreams")).await?;
        let mut body = answer.body;
        if matches!(output.output, Form::Table | Form::Wide) {
            let now = Timestamp::now();
            body["items"].as_array_mut().into_iter().flatten().for_each(|item| sum_up(item, now));
        }
        Ok(show::items(&body, &COLUMNS, output.output))
    }
}

/// What the table shows of latency, pacing and the last sweep.
fn sum_up(item: &mut Value, now: Timestamp) {
    let pacing = &item["pacing"];
    let number = |field: &str| pacing[field].as_u64().unwrap_or_default();
    let requests = match pacing["pausedForSeconds"].as_f64() {
        _ if pacing.is_null() => Value::Null,
        Some(left) => json!(format!("paused for {left:.0}s")),
        None => json!(format!(
            "{} of {}, {} waiting",
            number("underWay"),
            number("maxConcurrent"),
            number("waiting")
        )),
    };
    let p95 = item["latency"]["p95Seconds"].as_f64();
    let p95 = p95.map_or(Value::Null, |seconds| json!(format!("{:.0}ms", seconds * 1e3)));
    let sweep = &item["lastSweep"];
    let swept = match sweep["end"].as_str() {
        None => Value::Null,
        Some(end) => json!(format!("{end} {} ago", age(&sweep["endedAt"], now))),
    };
    item["requests"] = requests;
    item["p95"] = p95;
    item["swept"] = swept;
}

async fn check(client: &Client, upstream: &str) -> Result<String, Failure> {
    let path = ["upstreams", upstream, "check"];
    let found = client.ask(Ask::new(Method::POST, &path, "way to check upstreams")).await?.body;
    if found["health"] == "healthy" {
        let version = found["version"].as_str().map(|version| format!(" (version {version})"));
        return Ok(format!("{upstream}: healthy{}\n", version.unwrap_or_default()));
    }
    let why = found["message"].as_str().unwrap_or("it does not say why");
    Err(Failure::failed(format!("{upstream}: {}: {why}", cell(&found["health"]))))
}
