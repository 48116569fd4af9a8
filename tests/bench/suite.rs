//! All three upstreams, simulated, and fleets on them.

use std::time::{Duration, Instant};

use mongodb::bson::{DateTime, Document, doc};
use tenantry::dev::faults::{Fault, Faults};
use tenantry::dev::{issuer, ocis, stalwart};
use tokio::process::Child;

use crate::{WORKERS, World};

const KEY: &str = "API_bench";

pub struct Suite {
    pub world: World,
    pub mail: stalwart::Simulator,
    pub files: ocis::Simulator,
    issuer: issuer::Simulator,
}

impl Suite {
    pub async fn new(latency_ms: u64) -> anyhow::Result<Self> {
        let world = World::new(latency_ms).await?;
        let options = stalwart::Options { unlimited_requests: true, ..stalwart::Options::default() };
        let mail = stalwart::Simulator::new(0, KEY, options).await?;
        let account = issuer::Account::new("tenantry", "pw", &["tenant-provisioners"]);
        let options = issuer::Options { accounts: vec![account], ..issuer::Options::default() };
        let issuer = issuer::Simulator::new(0, options).await?;
        let trusted = issuer.issuer_url("ocis");
        let options = ocis::Options::default();
        let files = ocis::Simulator::new(0, ocis::Flavour::Ocis31, &trusted, options).await?;
        if latency_ms > 0 {
            for faults in [&mail.faults, &files.faults] {
                faults.add(Fault { delay_ms: latency_ms, ..Fault::default() });
            }
        }
        world.store().await?;
        Ok(Self { world, mail, files, issuer })
    }

    /// Starts a controller on all three; returns its telemetry address too.
    pub async fn controller(&self, settings: &[(&str, &str)]) -> anyhow::Result<(Child, String)> {
        let (mail, files, tokens) = (self.mail.url(), self.files.url(), self.issuer.token_url());
        let mut all = vec![
            ("STALWART_API_URL", mail.as_str()),
            ("STALWART_API_TOKEN", KEY),
            ("STALWART_MAX_PER_MINUTE", "0"),
            ("OCIS_API_URL", files.as_str()),
            ("OCIS_OIDC_TOKEN_URL", tokens.as_str()),
            ("OCIS_OIDC_CLIENT_ID", "web"),
            ("OCIS_OIDC_USERNAME", "tenantry"),
            ("OCIS_OIDC_PASSWORD", "pw"),
        ];
        all.extend(settings);
        self.world.controller_with(&all).await
    }

    pub fn upstreams(&self) -> [(&'static str, &Faults); 3] {
        [
            ("authentik", &self.world.authentik.faults),
            ("stalwart", &self.mail.faults),
            ("ocis", &self.files.faults),
        ]
    }

    pub fn forget_requests(&self) {
        self.upstreams().iter().for_each(|(_, faults)| faults.forget_requests());
    }

    /// Inserts tenants `{prefix}0`, `{prefix}1`, … as the API does.
    pub async fn insert(&self, prefix: &str, tenants: usize) -> anyhow::Result<()> {
        let now = DateTime::now();
        let documents: Vec<Document> = (0..tenants)
            .map(|n| {
                doc! {
                    "slug": format!("{prefix}{n}"), "name": format!("Tenant {prefix}{n}"),
                    "domain": format!("{prefix}{n}.test"), "status": "pending", "createdAt": now,
                    "quota": { "storageBytes": 1_000_000_000_i64 }, "lease": { "epoch": 0_i64 },
                }
            })
            .collect();
        for batch in documents.chunks(10_000) {
            self.world.tenants.insert_many(batch).await?;
        }
        Ok(())
    }
}

pub async fn three(tenants: usize, latency_ms: u64) -> anyhow::Result<()> {
    let suite = Suite::new(latency_ms).await?;
    let (controller, _) = suite.controller(&[]).await?;
    suite.world.warm().await?;
    suite.forget_requests();
    let started = Instant::now();
    suite.insert("t", tenants).await?;
    suite.world.active(tenants as u64 + 1, Duration::from_secs(1_200)).await?;
    let took = started.elapsed();
    println!(
        "three: {tenants} tenants at once on all three, {WORKERS} workers, latency {latency_ms} ms"
    );
    println!("  tenantry                       {:8.0} tenants/s", tenants as f64 / took.as_secs_f64());
    for (upstream, faults) in suite.upstreams() {
        println!(
            "  {upstream:<10} {:6.3} requests per tenant, at most {} at once",
            faults.total() as f64 / tenants as f64,
            faults.most_at_once()
        );
    }
    let (mail, files) = (&suite.mail, &suite.files);
    anyhow::ensure!(
        (mail.count(), files.count(), files.enabled()) == (tenants, tenants + 1, tenants + 1),
        "one resource each"
    );
    suite.world.stop(controller).await
}
