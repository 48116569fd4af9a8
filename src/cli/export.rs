//! `tenantry export`: the desired state of many tenants, as documents.

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::batch::patiently;
use super::client::{Client, Connection};
use super::commands::Pages;
use super::failure::Failure;
use super::filters::Filters;
use super::manifest::shortest;
use super::printable::escaped;
use super::table::cell;
use super::yaml::to_yaml;
use crate::terminal::{Printed, print, say};

#[derive(Debug, Args)]
pub struct Export {
    /// Language of the documents; of JSON there is one a line
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    output: Language,
    #[command(flatten)]
    filters: Filters,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Language {
    #[default]
    Yaml,
    Json,
}

impl Export {
    /// Page by page, so that a fleet of any size fits.
    pub async fn run(self) -> Result<String, Failure> {
        let client = Client::new(&self.connection).await?;
        let mut pages = Pages::default();
        loop {
            let next = pages.clone();
            let page = patiently(|| async {
                let mut pages = next.clone();
                pages.next(&client, &self.filters).await.map(|page| (page, pages))
            });
            let (page, after) = page.await?;
            pages = after;
            let Some(page) = page else { return Ok(String::new()) };
            let text: String =
                page.iter().filter(|tenant| is_kept(tenant)).map(|one| self.document(one)).collect();
            if print(&text)? == Printed::Unread {
                return Ok(String::new());
            }
        }
    }

    fn document(&self, tenant: &Value) -> String {
        let mut document = shortest(tenant);
        match self.output {
            Language::Yaml => {
                // First, what the document is about.
                let slug = document.as_object_mut().and_then(|fields| fields.remove("slug"));
                format!("---\n{}{}", to_yaml(&json!({ "slug": slug })), to_yaml(&document))
            }
            Language::Json => escaped(&format!("{document}\n")),
        }
    }
}

/// Tenants that are being deleted, and invalid documents, are not to come back.
fn is_kept(tenant: &Value) -> bool {
    let why = match () {
        () if tenant["status"] == "invalid" => "its document is invalid",
        () if !tenant["deletion"].is_null() => "it is being deleted",
        () => return true,
    };
    say(format_args!("tenantry: {} is left out: {why}", cell(&tenant["slug"])));
    false
}
