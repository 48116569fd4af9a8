//! The command `tenantry upstreams`: how the upstreams are.

use clap::Args;

use super::client::{Ask, Client};
use super::failure::Failure;
use super::{List, show};

#[derive(Debug, Args)]
pub struct Upstreams {
    #[command(flatten)]
    list: List,
}

const COLUMNS: [(&str, &str); 7] = [
    ("UPSTREAM", "upstream"),
    ("HEALTH", "health"),
    ("VERSION", "version"),
    ("BREAKER", "breaker"),
    ("NEXT PROBE", "nextProbeAt"),
    ("ACCEPTED", "credentialsAcceptedAt"),
    ("MESSAGE", "message"),
];

impl Upstreams {
    pub async fn run(self) -> Result<String, Failure> {
        let Self { list: List { connection, output } } = self;
        let client = Client::new(&connection).await?;
        let answer = client.ask(Ask::get(&["upstreams"], "view of the upstreams")).await?;
        Ok(show::items(&answer.body, &COLUMNS, output.output))
    }
}
