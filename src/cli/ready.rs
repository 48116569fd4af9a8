//! `tenantry ready`: whether a process is ready, for health checks of containers that have no shell.

use clap::Args;
use serde_json::Value;

use super::client::{Ask, Client, Connection};
use super::failure::Failure;
use super::printable::in_line;

#[derive(Debug, Args)]
pub struct IsReady {
    #[command(flatten)]
    connection: Connection,
}

impl IsReady {
    pub async fn run(self) -> Result<String, Failure> {
        let client = Client::new(&self.connection).await?;
        let answer = client.ask_whatever_comes(Ask::get(&["readyz"], "readiness")).await?.body;
        if answer["ready"] == true {
            return Ok("ready\n".to_owned());
        }
        Err(Failure::failed(format!("{} is not ready: {}", client.describe(), why(&answer))))
    }
}

fn why(answer: &Value) -> String {
    let of = |member: &str, healthy: bool, why: &'static str| {
        (answer[member] == !healthy).then_some(why.to_owned())
    };
    let causes = [
        of("store", true, "MongoDB does not answer"),
        of("watch", true, "the change stream is not open"),
        of("draining", false, "it is shutting down"),
        answer["validator"].as_str().map(|told| in_line(told).to_owned()),
        answer["detail"].as_str().map(|told| in_line(told).to_owned()),
    ];
    let causes: Vec<String> = causes.into_iter().flatten().collect();
    if causes.is_empty() { "it does not say why".to_owned() } else { causes.join("; ") }
}
