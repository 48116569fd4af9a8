//! `tenantry whoami`: who the API takes the caller for.

use clap::Args;
use jiff::Timestamp;

use super::client::{Ask, Client, Connection};
use super::failure::Failure;
use super::printable::in_line;
use super::show::{self, Form, Output};
use super::table::{age, cell};
use super::yaml::to_yaml;

#[derive(Debug, Args)]
pub struct WhoAmI {
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    connection: Connection,
}

impl WhoAmI {
    pub async fn run(self) -> Result<String, Failure> {
        let client = Client::new(&self.connection).await?;
        match self.output.output {
            Form::Json => Ok(show::json(&asked(&client).await?)),
            Form::Yaml => Ok(to_yaml(&asked(&client).await?)),
            Form::Name => Ok(format!("{}\n", in_line(&cell(&asked(&client).await?["sub"])))),
            Form::Table | Form::Wide => told(&client).await,
        }
    }
}

async fn asked(client: &Client) -> Result<serde_json::Value, Failure> {
    Ok(client.ask(Ask::get(&["whoami"], "way to say who asks")).await?.body)
}

/// For people.
pub async fn told(client: &Client) -> Result<String, Failure> {
    let who = asked(client).await?;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        text.push_str(in_line(&format!("{name:<10}{value}")).trim_end());
        text.push('\n');
    };
    line("Name:", cell(&who["name"]));
    line("Subject:", cell(&who["sub"]));
    line("Issuer:", cell(&who["issuer"]));
    line("Client:", cell(&who["client"]));
    line("Role:", role(&who));
    if !who["expiresAt"].is_null() {
        let left = age(&who["expiresAt"], Timestamp::now());
        line("Until:", format!("{} ({left})", cell(&who["expiresAt"])));
    }
    line("API:", client.describe());
    Ok(text)
}

fn role(who: &serde_json::Value) -> String {
    match (who["role"].as_str(), who["lacksClaim"].as_str()) {
        (Some(role), _) => role.to_owned(),
        (None, Some(claim)) => {
            format!("none: the token lacks the claim {claim}; a scope such as profile brings it")
        }
        (None, None) => {
            "none: the token gives no role; the API's administrator says which groups do".to_owned()
        }
    }
}
