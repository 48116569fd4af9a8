//! The commands `tenantry upstreams …`: how the upstreams are, and the end of one for the fleet.

use clap::{Args, Subcommand};
use reqwest::Method;

use super::client::{Ask, Client};
use super::failure::Failure;
use super::{List, show};

#[derive(Debug, Args)]
pub struct Upstreams {
    #[command(flatten)]
    list: List,
    #[command(subcommand)]
    command: Option<UpstreamsCommand>,
}

#[derive(Debug, Subcommand)]
enum UpstreamsCommand {
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

const COLUMNS: [(&str, &str); 8] = [
    ("UPSTREAM", "upstream"),
    ("FLEET", "fleet"),
    ("HEALTH", "health"),
    ("VERSION", "version"),
    ("BREAKER", "breaker"),
    ("NEXT PROBE", "nextProbeAt"),
    ("ACCEPTED", "credentialsAcceptedAt"),
    ("MESSAGE", "message"),
];

impl Upstreams {
    pub async fn run(self) -> Result<String, Failure> {
        let Self { list: List { connection, output }, command } = self;
        let client = Client::new(&connection).await?;
        if let Some(UpstreamsCommand::Retire { upstream }) = command {
            let path = ["upstreams", &upstream, "retire"];
            client.ask(Ask::new(Method::POST, &path, "way to retire upstreams")).await?;
            return Ok(format!("{upstream}: is retired; its steps are skipped from now on\n"));
        }
        let answer = client.ask(Ask::get(&["upstreams"], "view of the upstreams")).await?;
        Ok(show::items(&answer.body, &COLUMNS, output.output))
    }
}
