//! New tenants while one upstream is down: what that costs, and whom it holds up.

use std::time::{Duration, Instant};

use mongodb::bson::{Document, doc};

use crate::WORKERS;
use crate::suite::Suite;

/// How long the upstream is down, at least.
const DOWN: Duration = Duration::from_secs(60);

pub async fn outage(tenants: usize) -> anyhow::Result<()> {
    const LATENCY: u64 = 5;
    let mut suite = Suite::new(LATENCY).await?;
    let (controller, _) = suite.controller(&[("SWEEP_INTERVAL", "1d")]).await?;
    suite.world.warm().await?;
    println!(
        "outage: {tenants} new tenants at a time, {WORKERS} workers, upstream latency {LATENCY} ms"
    );
    let before = load(&suite, "a", tenants).await?;
    println!("  all up, before               {before:6.0} tenants/s have a group and a domain");
    suite.world.active(1 + tenants as u64, Duration::from_secs(600)).await?;

    suite.files.server.stop().await;
    let down = Instant::now();
    let during = load(&suite, "b", tenants).await?;
    println!("  oCIS down                    {during:6.0} tenants/s");
    // The rest of the minute, in which nothing may be written for those that wait.
    while down.elapsed() < DOWN || !all(&suite, "b", "steps.ocis.state", "error", tenants).await? {
        tokio::time::sleep(Duration::from_millis(200)).await;
        anyhow::ensure!(down.elapsed() < 10 * DOWN, "not all tenants say that oCIS is down");
    }
    let claims = claims(&suite, "b").await?;
    println!(
        "  down for {:.0?}: {:.3} claims per tenant, at most {} of one",
        down.elapsed(),
        claims.0,
        claims.1
    );
    suite.files.server.restart().await?;
    let up = Instant::now();
    suite.world.active(1 + 2 * tenants as u64, Duration::from_secs(1_200)).await?;
    println!("  up again                     all active after {:.1?}", up.elapsed());
    let after = load(&suite, "c", tenants).await?;
    suite.world.active(1 + 3 * tenants as u64, Duration::from_secs(600)).await?;
    println!("  all up, after                {after:6.0} tenants/s");
    println!(
        "  rate with oCIS down          {:.2} times the undisturbed one",
        2.0 * during / (before + after)
    );
    anyhow::ensure!(suite.files.enabled() == 3 * tenants + 1, "one space each");
    suite.world.stop(controller).await
}

/// Inserts tenants; returns how many a second have a group and a domain, until all do.
async fn load(suite: &Suite, prefix: &str, tenants: usize) -> anyhow::Result<f64> {
    let started = Instant::now();
    suite.insert(prefix, tenants).await?;
    for step in ["authentik", "stalwart"] {
        let field = format!("provisioningStatus.{step}");
        while !all(suite, prefix, &field, "ok", tenants).await? {
            anyhow::ensure!(started.elapsed() < Duration::from_secs(900), "{step} is not done for all");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(tenants as f64 / started.elapsed().as_secs_f64())
}

fn of(prefix: &str) -> Document {
    doc! { "slug": { "$regex": format!("^{prefix}[0-9]") } }
}

async fn all(
    suite: &Suite,
    prefix: &str,
    field: &str,
    value: &str,
    tenants: usize,
) -> anyhow::Result<bool> {
    let mut filter = of(prefix);
    filter.insert(field, value);
    Ok(suite.world.tenants.count_documents(filter).await? == tenants as u64)
}

/// Claims that a tenant has seen: the mean, and the most.
async fn claims(suite: &Suite, prefix: &str) -> anyhow::Result<(f64, i64)> {
    let group = doc! { "$group": {
        "_id": null, "mean": { "$avg": "$lease.epoch" }, "most": { "$max": "$lease.epoch" },
    } };
    let mut found = suite.world.tenants.aggregate(vec![doc! { "$match": of(prefix) }, group]).await?;
    anyhow::ensure!(found.advance().await?, "there are tenants");
    let claims: Document = found.deserialize_current()?;
    Ok((claims.get_f64("mean")?, claims.get_i64("most")?))
}
